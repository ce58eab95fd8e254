"""The debug kernels that tests boot."""

from __future__ import annotations

import pytest

from tests.debug.kernels import DebugKernel, NotBuiltError, find_debug_kernel

#: What runs inside guests only, named there file by file.
collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def uml() -> DebugKernel:
    """The user-mode Linux kernel."""
    try:
        return find_debug_kernel("uml")
    except NotBuiltError as reason:
        pytest.skip(str(reason))
