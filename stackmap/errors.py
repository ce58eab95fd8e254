"""The package's exceptions, in four kinds, by their cause.

- :class:`ClosedError`: the program itself has closed what it uses: a port, a connection, a socket.
- :class:`BrokenError`: the peer, or the path to it, ended the connection.
- :class:`BusyError`: something else uses it: another thread, another port, another layer.
- :class:`WouldBlockError`: it cannot be done now, and may be tried again.

All are ``OSError`` and have an ``errno``.  Where ``OSError`` has a class for that errno, they are
of that class as well: a :class:`BrokenError` with ``ECONNRESET`` is a ``ConnectionResetError``.
What else goes wrong in the kernel is an ``OSError`` of no kind.  Wrong arguments are
``ValueError``, and memory that is still in use is ``BufferError``.
"""

from __future__ import annotations

import errno
import os
from typing import Any, TypeVar


class StackmapError(Exception):
    """A person can put this right; ``str()`` is the sentence to show them."""


class BackendUnavailableError(StackmapError):
    """The requested backend cannot be used here (no module, no right, no bound NIC)."""


class _KindOfError(OSError):
    """An OSError that can be pickled although its class may have been made by make_error()."""

    def __reduce__(self) -> tuple[Any, ...]:
        kind = next(kind for kind in _KINDS if isinstance(self, kind))
        return make_error, (kind, self.errno, self.strerror)


class ClosedError(_KindOfError, ValueError):
    """The program itself has closed it.  Like other closed files it raises a ``ValueError``."""


class BrokenError(_KindOfError):
    """The peer or the path to it ended the connection."""


class BusyError(_KindOfError):
    """Something else uses it: another thread, another port or another layer of the kernel."""


class WouldBlockError(_KindOfError):
    """It cannot be done now; exchange, and try again."""


_KINDS = (ClosedError, BrokenError, BusyError, WouldBlockError)

_Kind = TypeVar("_Kind", bound=OSError)


#: Classes of errors of a kind whose errno has a class of Python's own.
_combined: dict[tuple[type[OSError], type[OSError]], Any] = {}


def make_error(kind: type[_Kind], code: int, sentence: str | None = None) -> _Kind:
    """Return an error of a kind, for an errno; the sentence is the kernel's if there is none."""
    sentence = os.strerror(code) if sentence is None else sentence
    builtin = type(OSError(code, sentence))
    if kind is OSError or issubclass(kind, builtin):
        return kind(code, sentence)  # OSError chooses the class itself
    if (kind, builtin) not in _combined:
        names = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        _combined[kind, builtin] = type(kind.__name__, (kind, builtin), names)
    error: _Kind = _combined[kind, builtin](code, sentence)
    return error


def port_closed() -> ClosedError:
    """Return the error of whatever is done with a closed port."""
    return make_error(ClosedError, errno.EBADF, "the port is closed")


def broken(code: int) -> BrokenError:
    """Return the error of a connection that failed with this errno."""
    return make_error(BrokenError, code)
