"""Builds :mod:`stackmap_testbed.load._load_c`, the hot loop of the load generator."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent
# A build takes only paths that are relative to its setup.py.
_FOLDER = "testbed/stackmap_testbed/load"

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "_load.h").read_text())
ffibuilder.set_source(
    "stackmap_testbed.load._load_c",
    '#include <stddef.h>\n#include <stdint.h>\n#include "_load.h"\n',
    sources=[f"{_FOLDER}/_load.c"],
    depends=[f"{_FOLDER}/_load.h", f"{_FOLDER}/_mark.h"],
    include_dirs=[_FOLDER],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
