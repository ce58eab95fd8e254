"""As much of bpf(2) as sockmap, KCM, cgroups and XDP need, without a library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import tempfile
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from tests.guest.commands import sh

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_SYS_BPF = 321
_MAP_CREATE, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _PROG_LOAD = 0, 2, 3, 5
_PROG_ATTACH, _PROG_DETACH = 8, 9
_PROG_TYPE_SOCKET_FILTER, _PROG_TYPE_XDP, _PROG_TYPE_CGROUP_SKB = 1, 6, 8
_CGROUP_INET_INGRESS, _CGROUP_INET_EGRESS = 0, 1
_MAP_TYPE_SOCKMAP = 15
#: The driver need not know XDP.
_XDP_FLAGS_SKB_MODE = 2
#: r0 = 0; exit
_RETURN_0 = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2); its result, or OSError."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(_SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def make_sockmap() -> int:
    """A sockmap with four places; returns its descriptor."""
    return _bpf(_MAP_CREATE, struct.pack("<IIIII", _MAP_TYPE_SOCKMAP, 4, 4, 4, 0))


def put_into_sockmap(sockmap: int, place: int, sock: socket.socket) -> None:
    """Put a socket into a sockmap."""
    key = ctypes.c_uint32(place)
    value = ctypes.c_uint32(sock.fileno())
    addresses = (ctypes.addressof(key), ctypes.addressof(value))
    _bpf(_MAP_UPDATE_ELEM, struct.pack("<IxxxxQQQ", sockmap, *addresses, 0))


def remove_from_sockmap(sockmap: int, place: int) -> None:
    """Empty one place of a sockmap."""
    key = ctypes.c_uint32(place)
    _bpf(_MAP_DELETE_ELEM, struct.pack("<IxxxxQQQ", sockmap, ctypes.addressof(key), 0, 0))


def load_socket_filter() -> int:
    """The smallest socket filter, which answers 0; returns its descriptor."""
    return _load_zero(_PROG_TYPE_SOCKET_FILTER)


def drop_all_that_leaves() -> AbstractContextManager[None]:
    """Have a program of the root cgroup drop each packet that a socket sends."""
    return _drop_all(_CGROUP_INET_EGRESS)


def drop_all_that_comes() -> AbstractContextManager[None]:
    """Have a program of the root cgroup drop each packet that comes to a socket."""
    return _drop_all(_CGROUP_INET_INGRESS)


@contextlib.contextmanager
def _drop_all(direction: int) -> Iterator[None]:
    program = _load_zero(_PROG_TYPE_CGROUP_SKB)
    with tempfile.TemporaryDirectory() as place:
        sh(f"mount -t cgroup2 none {place}")
        cgroup = os.open(place, os.O_RDONLY)
        attributes = struct.pack("<IIII", cgroup, program, direction, 0)
        try:
            _bpf(_PROG_ATTACH, attributes)
            yield
            _bpf(_PROG_DETACH, attributes)
        finally:
            os.close(cgroup)
            os.close(program)
            sh(f"umount {place}")


@contextlib.contextmanager
def xdp_drops_all(nic: str) -> Iterator[None]:
    """Have a program of XDP drop each packet that a NIC receives: 0 is XDP_ABORTED."""
    program = _load_zero(_PROG_TYPE_XDP)
    try:
        _set_xdp(nic, program)
        yield
    finally:
        _set_xdp(nic, -1)
        os.close(program)


def _set_xdp(nic: str, program: int) -> None:
    attributes = [["IFLA_XDP_FD", program], ["IFLA_XDP_FLAGS", _XDP_FLAGS_SKB_MODE]]
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=nic)
        route.link("set", index=index, xdp={"attrs": attributes})


def _load_zero(kind: int) -> int:
    """Load a program that answers 0."""
    code = ctypes.create_string_buffer(_RETURN_0, len(_RETURN_0))
    license_name = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQI",
        *(kind, len(_RETURN_0) // 8),
        *(ctypes.addressof(code), ctypes.addressof(license_name)),
        *(0, 0, 0, 0),
    )
    return _bpf(_PROG_LOAD, attributes)
