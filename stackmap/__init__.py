"""The kernel's TCP with rings as its data plane, from Python.

Open a :class:`Port` (:func:`open_port` chooses the backend), hand it established TCP sockets, and
exchange segments with it.
"""

from ._errors import BackendUnavailableError, StackmapError
from ._open import open_port
from ._port import Connection, Event, Port, PortStats, Segment
from ._ring import RingConnection, RingPort
from ._sockets import SocketPort

__all__ = [
    "BackendUnavailableError",
    "Connection",
    "Event",
    "Port",
    "PortStats",
    "RingConnection",
    "RingPort",
    "Segment",
    "SocketPort",
    "StackmapError",
    "open_port",
]
