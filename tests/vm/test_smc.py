"""Sockets of SMC, which Debian's kernels have and user-mode Linux has not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.inside import GuestPytest

PROGRAM = Path(__file__).parent.parent / "guest" / "smc.py"


@pytest.mark.usefixtures("module")
@pytest.mark.timeout(600)
def test_sockets_of_smc(guest_pytest: GuestPytest) -> None:
    """They are refused, whatever they have become, and go on as before."""
    guest_pytest.passes(PROGRAM, timeout=550, patience=500)
