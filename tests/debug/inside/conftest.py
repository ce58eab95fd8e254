"""The wire and the ports of ``tests/guest``, here too."""

from __future__ import annotations

from tests.guest.conftest import nic, port, two

__all__ = ["nic", "port", "two"]
