"""Kept payload in the rings' own pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._connection import Kept
from ._in_use import in_use_error, release_unless_in_use

if TYPE_CHECKING:
    from ._fast import LentSegment, Outlet, Page
    from ._kernel_port import KernelPort


class LentKept(Kept):
    """Kept payload that stays in the page where it was received.

    Args:
        kernel: the port.
        segment: the payload, which its ring still lends.
        spare: the buffer that its ring gets instead of the page's.

    Raises:
        BufferError: a slice of the segment's view is still in use.
    """

    __slots__ = ("_kernel", "_page")

    def __init__(self, kernel: KernelPort, segment: LentSegment, spare: int) -> None:
        page = segment.keep(spare)
        super().__init__(segment.connection, memoryview(page))
        #: None: it has been released or forwarded.
        self._page: Page | None = page
        self._kernel = kernel
        kernel.kept += 1

    def release(self) -> None:
        """Give the page back.  Idempotent.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        if self._page is not None:
            self._release_view(self._page)
            self._page.release()
            self._give_back(self._page.buffer)

    def forward(self, to: Outlet) -> bool:
        """Put the page into a transmit slot; False if there is none free.

        It is also False if the outlet is another port's, or the page was given back.

        Raises:
            BufferError: a slice of the view is still in use.
        """
        page = self._page
        if page is None:
            return False
        self._release_view(page)
        spare = page.send(to)
        if spare:
            self._give_back(spare)
            return True
        self.view = memoryview(page)
        return False

    def _release_view(self, page: Page) -> None:
        if not release_unless_in_use(self.view) or page.in_use:
            raise in_use_error(self.connection)

    def _give_back(self, buffer: int) -> None:
        self._page = None
        self._kernel.extra_buffers.append(buffer)
        self._kernel.kept -= 1
