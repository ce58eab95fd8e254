"""The kernel's TCP with rings as its data plane, from Python.

Open a :class:`Port` (:func:`open_port` chooses the backend), hand it established TCP sockets, and
exchange segments with it.
"""

from . import errors
from ._connection import Connection, Kept
from ._device import DEVICE
from ._event import Event
from ._fast import Segment
from ._open import Backend, choose_port, open_port
from ._port import Listener, Port, PortStats
from ._reset import reset_on_close, reset_transport
from ._ring import Ring
from ._ring_connection import RingConnection
from ._ring_listener import RingListener
from ._ring_port import RingPort
from ._sockets import SocketPort
from ._tcp_state import TcpState
from ._version import __version__
from .errors import (
    BackendUnavailableError,
    BrokenError,
    BusyError,
    ClosedError,
    StackmapError,
    WouldBlockError,
)

__all__ = [
    "DEVICE",
    "Backend",
    "BackendUnavailableError",
    "BrokenError",
    "BusyError",
    "ClosedError",
    "Connection",
    "Event",
    "Kept",
    "Listener",
    "Port",
    "PortStats",
    "Ring",
    "RingConnection",
    "RingListener",
    "RingPort",
    "Segment",
    "SocketPort",
    "StackmapError",
    "TcpState",
    "WouldBlockError",
    "__version__",
    "choose_port",
    "errors",
    "open_port",
    "reset_on_close",
    "reset_transport",
]
