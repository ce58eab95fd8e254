"""Compare rings with sockets by the clock, on two hosts; depends on ``lab`` and ``load``."""
