"""REGISTER requests that are refused."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest

from tests.guest.raw import NIOCCTRL, address_of, limits_option, register, register_body
from tests.guest.wire import NIC


def code(request: bytearray, option: bytearray | None = None) -> int:
    """The errno with which registering fails."""
    fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError) as caught:
            register(fd, f"tcp:{NIC}", request, options=address_of(option) if option else 0)
    finally:
        os.close(fd)
    return caught.value.errno or 0


def test_memory_of_another_port() -> None:
    request = register_body()
    struct.pack_into("<H", request, 32, 7)
    assert code(request) == errno.EINVAL


def test_an_option_of_another_size() -> None:
    option = limits_option()
    struct.pack_into("<Q", option, 16, len(option) + 8)
    assert code(register_body(), option) == errno.EINVAL
    struct.pack_into("<Q", option, 16, len(option))
    fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
    register(fd, f"tcp:{NIC}", register_body(), options=address_of(option))
    os.close(fd)


@pytest.mark.parametrize("version", [14, 15])
def test_versions_of_netmap_with_this_layout(version: int) -> None:
    fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
    register(fd, f"tcp:{NIC}", register_body(), version=version)
    os.close(fd)


def test_a_name_without_an_end() -> None:
    body = register_body()
    header = bytearray(88)
    struct.pack_into("<HH4x64sQQ", header, 0, 14, 1, b"tcp:" + b"x" * 60, 0, address_of(body))
    fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(OSError) as caught:
        fcntl.ioctl(fd, NIOCCTRL, header)
    os.close(fd)
    assert caught.value.errno == errno.EINVAL
