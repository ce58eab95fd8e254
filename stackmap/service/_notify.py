"""Tell the service manager how far this process is, as sd_notify(3) describes."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Send a state such as ``READY=1`` to systemd.

    Returns:
        Whether it was sent: not if nobody asked for it, which ``$NOTIFY_SOCKET`` would say.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot tell the service manager %s at %s: %s", state, address, error)
        return False
    return True
