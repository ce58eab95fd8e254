"""Views that are still in use when the memory that they show is wanted back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def in_use_error(owner: object) -> BufferError:
    """The error to raise for a view of payload of ``owner``, a connection, with a slice in use."""
    return BufferError(f"a view received from {owner!r} is still in use; release its slices first")


def release_unless_in_use(view: memoryview) -> bool:
    """Release a view; False if something has it exported."""
    try:
        view.release()
    except BufferError:
        return False
    return True


def warn_in_use(owners: Iterable[object]) -> None:
    """Say that payload of an earlier exchange is still referred to, which is a leak if it lasts."""
    names = " or ".join(sorted({repr(owner) for owner in owners}))
    warnings.warn(
        f"a view received from {names} is still in use after the next exchange; its memory is "
        "kept until its slices are released (copy what you keep, or use Port.keep())",
        ResourceWarning,
        stacklevel=4,  # the caller of exchange()
    )
