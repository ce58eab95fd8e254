"""Builds :mod:`stackmap_testbed._load_c`, the hot loop of the load generator."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "_load.h").read_text())
ffibuilder.set_source(
    "stackmap_testbed._load_c",
    '#include <stddef.h>\n#include <stdint.h>\n#include "_load.h"\n',
    sources=["testbed/_load.c"],
    depends=["testbed/_load.h", "testbed/_mark.h"],
    include_dirs=["testbed"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
