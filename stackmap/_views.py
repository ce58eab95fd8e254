"""Views of the rings' own pages, and when those pages may go back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._connection import Connection, Event, Kept
from ._fast import Segment
from ._ring_c import lib

if TYPE_CHECKING:
    from ._ring import Ring

_IN_USE = "a view received from {!r} is still in use; release its slices first"
_NO_EVENT = Event.NONE


def _release(view: memoryview, page: Any, connection: Connection) -> None:
    """Release a view of a page, which nothing may refer to afterwards.

    Raises:
        BufferError: a slice of the view is still in use.
    """
    try:
        view.release()
        # What refers to the page besides: the ring's table of pages, the owner of the view, the
        # argument here, and that of getrefcount().
        in_use = sys.getrefcount(page) > 4
    except BufferError:
        in_use = True
    if in_use:
        raise BufferError(_IN_USE.format(connection))


class LentSegment(Segment):
    """A segment with a view of a page of the receive ring."""

    __slots__ = ("_page", "_range", "_slot", "ring")

    def __init__(
        self, ring: Ring, connection: Connection, page: Any, range: slice, slot: int
    ) -> None:
        self.ring = ring
        self._page = page
        self._range = range
        self._slot = slot  # where it is in the ring; -1: there no more
        self._show(connection)

    @property
    def lent(self) -> bool:
        """The page is in the receive ring, and the application's."""
        return self._slot >= 0

    def _show(self, connection: Connection) -> None:
        """Be a segment with a new view of the page."""
        view = memoryview(self._page)[self._range].toreadonly()
        super().__init__(connection, view, _NO_EVENT, 0)

    def take_back(self) -> bool:
        """The exchange ends: release the view, and leave the page in the ring.

        If a slice of it is still in use, the page is taken out of the ring until it is not; then
        this is False.
        """
        if self.lent:
            try:
                _release(self.view, self._page, self.connection)
            except BufferError:
                self.ring._set_aside(self._page, self._slot)
                self._gone()
                return False
            self._gone()
        return True

    def _gone(self) -> None:
        self._slot = -1
        self._page = None

    def forward(self, to: Ring, id: int) -> bool:
        """Put the page into a transmit slot; False if there is none free.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        _release(self.view, self._page, self.connection)
        if lib.smr_forward(self.ring._pair, self._slot, to._pair, id):
            self._gone()
            return True
        self._show(self.connection)
        return False

    def keep(self, spare: int) -> LentKept:
        """Leave the buffer ``spare`` to the receive ring, and keep the page.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        _release(self.view, self._page, self.connection)
        page = self._page
        buf = lib.smr_keep(self.ring._pair, self._slot, spare)
        self._gone()
        return LentKept(self.ring, self.connection, page, self._range, buf)


class LentKept(Kept):
    """Kept payload that stays in the page where it was received."""

    __slots__ = ("_buf", "_page", "_range", "ring")

    def __init__(
        self, ring: Ring, connection: Connection, page: Any, range: slice, buf: int
    ) -> None:
        super().__init__(connection, memoryview(page)[range].toreadonly())
        self.ring = ring
        self._page = page
        self._range = range
        self._buf = buf
        ring._port._kept += 1

    @property
    def lent(self) -> bool:
        """It has not been released or forwarded."""
        return self._page is not None

    def release(self) -> None:
        """Give the page back.  Idempotent.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        if self.lent:
            _release(self.view, self._page, self.connection)
            self._gone(self._buf)

    def _gone(self, spare: int) -> None:
        self._page = None
        self.ring._port._extra.append(spare)
        self.ring._port._kept -= 1

    def forward(self, to: Ring, id: int) -> bool:
        """Put the page into a transmit slot; False if there is none free.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        _release(self.view, self._page, self.connection)
        start, size = self._range.start, self._range.stop - self._range.start
        spare = lib.smr_send_buffer(to._pair, id, self._buf, start, size)
        if spare:
            self._gone(spare)
            return True
        self.view = memoryview(self._page)[self._range].toreadonly()
        return False
