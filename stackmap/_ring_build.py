"""Builds :mod:`stackmap._ring_c`, the hot loops of :class:`stackmap.RingPort`."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef("struct sm_ring;\n" + (_HERE / "_ring.h").read_text())
ffibuilder.set_source(
    "stackmap._ring_c",
    '#include <stddef.h>\n#include <stdint.h>\n#include "stackmap.h"\n#include "_ring.h"\n',
    sources=["stackmap/_ring.c"],
    depends=["stackmap/_ring.h", "kmod/uapi/stackmap.h"],
    include_dirs=["stackmap", "kmod/uapi"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
