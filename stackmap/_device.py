"""Where the kernel module is found."""

DEVICE = "/dev/stackmap"
