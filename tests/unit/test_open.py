"""Choosing a backend: what is no choice is refused before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest

from stackmap import RingPort, open_port
from stackmap._open import choose_port


@pytest.mark.parametrize("name", ["rings", "socket", "Sockets", "", None, 0, ["auto"]])
def test_an_unknown_backend_is_refused(name: Any) -> None:
    for choose in (lambda: open_port(name), lambda: choose_port(name, None)):
        with pytest.raises(ValueError, match="'auto', 'stackmap', 'sockets'") as caught:
            choose()
        assert repr(name) in str(caught.value)


def test_sockets_take_no_nic() -> None:
    with pytest.raises(ValueError, match="nic='eth9'"):
        open_port("sockets", nic="eth9")


@pytest.mark.parametrize("nic", ["", "eth0\0", "\0"])
def test_invalid_nic_names(nic: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a NIC"):
        RingPort(nic)
    for backend in ("auto", "stackmap", "sockets"):
        with pytest.raises(ValueError, match="cannot be the name of a NIC"):
            open_port(backend, nic)
