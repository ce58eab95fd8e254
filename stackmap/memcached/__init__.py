"""A memcached-like server above :class:`stackmap.Port`, in four parts.

``codec`` cuts the byte stream into commands, ``store`` holds the items, ``session`` executes the
commands of one connection, and ``server`` moves the bytes.
"""

from .server import Server
from .session import Session
from .store import Store

__all__ = ["Server", "Session", "Store"]
