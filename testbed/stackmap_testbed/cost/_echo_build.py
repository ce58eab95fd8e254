"""Builds :mod:`stackmap_testbed.cost._echo_c`, echo servers in C."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent
# A build takes only paths that are relative to its setup.py.
_FOLDER = "testbed/stackmap_testbed/cost"

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "_echo.h").read_text())
ffibuilder.set_source(
    "stackmap_testbed.cost._echo_c",
    '#include "_echo.h"\n',
    sources=[f"{_FOLDER}/_echo.c", "stackmap/_ring.c"],
    depends=[
        f"{_FOLDER}/_echo.h",
        "stackmap/_ring.h",
        "stackmap/_ring_hot.h",
        "kmod/uapi/stackmap.h",
    ],
    include_dirs=[_FOLDER, "stackmap", "kmod/uapi"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
