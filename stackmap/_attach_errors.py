"""Why a socket cannot be attached, in the same words on both backends."""

from __future__ import annotations

import errno
import os

from .errors import BusyError, ClosedError, make_error

_KINDS = {
    errno.EALREADY: BusyError,
    errno.EBADF: ClosedError,
    errno.EBUSY: BusyError,
}
_SENTENCES = {
    errno.EALREADY: "the socket is attached already",
    errno.EBADF: "the socket is closed",
    errno.EBUSY: "the socket is in use by kTLS, sockmap, KCM, SMC, TCP_REPAIR or a waiting send",
    errno.EINVAL: "a listening socket cannot be attached: use attach_listener()",
    errno.ENOSPC: "the port has as many connections as it was opened for",
    errno.ENOTCONN: "the socket is not connected",
    errno.EOPNOTSUPP: "only TCP sockets can be attached",
    errno.EXDEV: "the socket is of another network namespace than the port",
}
_NOT_LISTENING = "the socket is not listening: use attach() for a connection"


def attach_error(code: int, *, listener: bool = False) -> OSError:
    """The error to raise for the errno with which attaching a socket, or a listener, fails."""
    if listener and code == errno.EINVAL:
        return OSError(code, _NOT_LISTENING)
    sentence = _SENTENCES.get(code) or f"attach: {os.strerror(code)}"
    return make_error(_KINDS.get(code, OSError), code, sentence)
