"""The meanings of segments without payload."""

from __future__ import annotations

import enum


class Event(enum.IntFlag):
    """The meaning of a segment without payload.

    Events arrive in order with the data: every byte the peer sent before its FIN is delivered
    before ``EOF``, and nothing follows ``CLOSED``.
    """

    NONE = 0
    #: The peer sent FIN: nothing more will be received (sending may go on).
    EOF = 1
    #: The connection failed; :attr:`Segment.error` says how (``ECONNRESET``, ``ETIMEDOUT``...).
    ERROR = 2
    #: Everything that :meth:`Connection.write` had to queue has been handed to TCP, or as much of
    #: it as :meth:`Connection.set_write_limits` asks for.
    WRITABLE = 4
    #: The connection is gone, and its socket is closed; nothing more comes from it.  Follows
    #: ``ERROR``, :meth:`Connection.close` and :meth:`Connection.abort`, and comes by itself once
    #: both directions have ended (``EOF`` and :meth:`Connection.shutdown_write`).
    CLOSED = 8
    #: The connection is new: :meth:`Port.connect` has connected it, or another thread put it on
    #: this ring (only with several rings, see :meth:`stackmap.RingPort.place`).
    OPEN = 32
    #: The peer's TCP has acknowledged bytes of which a report was asked for, see
    #: :meth:`Connection.write` and :attr:`Connection.bytes_acked`.
    ACKED = 64
