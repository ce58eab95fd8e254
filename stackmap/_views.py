"""Views of the rings' own pages, and when those pages may go back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._connection import Connection, Kept
from ._event import Event
from ._fast import Segment
from ._in_use import in_use_error, release_unless_in_use
from ._ring_c import lib

if TYPE_CHECKING:
    from ._pair import Pair

_NO_EVENT = Event.NONE


def _release(view: memoryview, page: Any, connection: Connection) -> None:
    """Release a view of a page, which nothing may refer to afterwards.

    Raises:
        BufferError: a slice of the view is still in use.
    """
    # Other references to the page: the pair's table of pages, the owner of the view, the
    # argument here, and that of getrefcount().
    if not release_unless_in_use(view) or sys.getrefcount(page) > 4:
        raise in_use_error(connection)


class LentSegment(Segment):
    """A segment with a view of a page of the receive ring."""

    __slots__ = ("_page", "_range", "_slot", "pair")

    def __init__(
        self, pair: Pair, connection: Connection, page: Any, range: slice, slot: int
    ) -> None:
        self.pair = pair
        self._page = page
        self._range = range
        self._slot = slot  # where it is in the ring; -1: there no more
        self._show(connection)

    @property
    def lent(self) -> bool:
        """The page is in the receive ring, and the application's."""
        return self._slot >= 0

    @property
    def size(self) -> int:
        """Bytes of payload."""
        size: int = self._range.stop - self._range.start
        return size

    def _show(self, connection: Connection) -> None:
        """Be a segment with a new view of the page."""
        view = memoryview(self._page)[self._range].toreadonly()
        super().__init__(connection, view, _NO_EVENT, 0)

    def release(self) -> None:
        """Release the view; the page goes back with the next exchange.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        if self.lent:
            _release(self.view, self._page, self.connection)
            self._forget_page()
        else:
            super().release()

    def take_back(self) -> bool:
        """The exchange ends: release the view, and leave the page in the ring.

        If a slice of it is still in use, the page is taken out of the ring until it is not; then
        this is False.
        """
        if self.lent:
            try:
                _release(self.view, self._page, self.connection)
            except BufferError:
                self.pair.set_aside(self._page, self._slot)
                self._forget_page()
                return False
            self._forget_page()
        return True

    def _forget_page(self) -> None:
        self._slot = -1
        self._page = None

    def forward(self, to: Pair, id: int) -> bool:
        """Put the page into a transmit slot; False if there is none free.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        _release(self.view, self._page, self.connection)
        if lib.smr_forward(self.pair.struct, self._slot, to.struct, id):
            self._forget_page()
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
        buffer = lib.smr_keep(self.pair.struct, self._slot, spare)
        self._forget_page()
        return LentKept(self.pair, self.connection, page, self._range, buffer)


class LentKept(Kept):
    """Kept payload that stays in the page where it was received."""

    __slots__ = ("_buffer", "_page", "_range", "pair")

    def __init__(
        self, pair: Pair, connection: Connection, page: Any, range: slice, buffer: int
    ) -> None:
        super().__init__(connection, memoryview(page)[range].toreadonly())
        self.pair = pair
        self._page = page
        self._range = range
        self._buffer = buffer
        pair.kernel.kept += 1

    @property
    def lent(self) -> bool:
        """It has not been released or forwarded."""
        return self._page is not None

    @property
    def size(self) -> int:
        """Bytes of payload."""
        size: int = self._range.stop - self._range.start
        return size

    def release(self) -> None:
        """Give the page back.  Idempotent.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        if self.lent:
            _release(self.view, self._page, self.connection)
            self._give_back(self._buffer)

    def _give_back(self, buffer: int) -> None:
        self._page = None
        self.pair.kernel.extra_buffers.append(buffer)
        self.pair.kernel.kept -= 1

    def forward(self, to: Pair, id: int) -> bool:
        """Put the page into a transmit slot; False if there is none free.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        _release(self.view, self._page, self.connection)
        spare = lib.smr_send_buffer(to.struct, id, self._buffer, self._range.start, self.size)
        if spare:
            self._give_back(spare)
            return True
        self.view = memoryview(self._page)[self._range].toreadonly()
        return False
