"""Serve the host's root file system to one guest."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.lab.errors import MissingToolError
from stackmap_testbed.lab.helper_process import end_process, start_process

if TYPE_CHECKING:
    import subprocess

_PLACES = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")

# The guest keeps what it has read, which makes starting Python in it three times as fast, but asks
# after a second whether it has changed: what is built again here is new in there.
_CACHING = ("-o", "cache=always", "-o", "timeout=1")


def find_virtiofsd() -> str:
    """Return the path of virtiofsd.

    Raises:
        MissingToolError: it is not installed.
    """
    for place in (*_PLACES, shutil.which("virtiofsd")):
        if place is not None and Path(place).is_file():
            return place
    raise MissingToolError(
        "virtiofsd is not installed: install it with 'apt-get install qemu-system-common'"
    )


class RootShare:
    """One virtiofsd, and the connected socket on which QEMU talks to it."""

    def __init__(self, log: Path) -> None:
        """Start the daemon on a listening socket without a name in the file system."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind("")  # the kernel picks an unused abstract address
            listener.listen()
            command = [
                find_virtiofsd(),
                f"--fd={listener.fileno()}",
                *("-o", "source=/", "-o", "sandbox=chroot", "-o", "log_level=warn"),
                *_CACHING,
                "--thread-pool-size=1",
            ]
            self._process: subprocess.Popen[bytes] = start_process(
                command, log, [listener.fileno()]
            )
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(listener.getsockname())

    def close(self) -> None:
        """End the daemon."""
        self.socket.close()
        end_process(self._process)
