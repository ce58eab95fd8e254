"""SMC sockets that have fallen back to TCP: ``tests/vm/test_smc.py`` runs this where there are any.

They look like TCP's, but SMC's callbacks, or its file, are still on them.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from tests.guest.commands import sh
from tests.guest.raw import ATTACH_LISTENER
from tests.guest.wire import ADDRESS, in_peer_namespace
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from tests.guest.raw import RawPort

AF_SMC, TCP_FASTOPEN = 43, 23


def smc_listener(*, fallen_back: bool) -> socket.socket:
    """A listener of SMC, seen as one of TCP."""
    sh("modprobe smc")
    fd = socket.socket(AF_SMC, socket.SOCK_STREAM, 0).detach()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    if fallen_back:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)  # SMC cannot
    listener.bind((ADDRESS, 0))
    listener.listen()
    return listener


def refusal(port: RawPort, sock: socket.socket, flags: int = 0) -> int:
    with pytest.raises(OSError) as caught:
        port.attach(sock, flags)
    return caught.value.errno or 0


@pytest.mark.parametrize("fallen_back", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_is_refused(port: RawPort, fallen_back: bool, reset: bool) -> None:
    with smc_listener(fallen_back=fallen_back) as listener, in_peer_namespace() as peer:
        assert refusal(port, listener, ATTACH_LISTENER) == errno.EOPNOTSUPP
        peer.settimeout(60.0)
        peer.connect(listener.getsockname())
        sock, _name = listener.accept()
        with sock:
            assert refusal(port, sock) == (errno.EBUSY if fallen_back else errno.EOPNOTSUPP)
            sock.sendall(b"ordinary")
            assert peer.recv(100) == b"ordinary"
            if reset:
                reset_on_close(peer)
            peer.close()
            with pytest.raises(ConnectionResetError) if reset else pytest.raises(EOFError):
                if not sock.recv(100):
                    raise EOFError
