"""The part of the packaging that pyproject.toml cannot express: extension modules."""

from setuptools import Extension, setup

fast = Extension(
    "stackmap._fast",
    [
        "stackmap/_fast.c",
        "stackmap/_fast_callback.c",
        "stackmap/_fast_exchange.c",
        "stackmap/_fast_forward.c",
        "stackmap/_fast_lent.c",
        "stackmap/_fast_method.c",
        "stackmap/_fast_segment.c",
        "stackmap/_fast_transport.c",
        "stackmap/_fast_turn.c",
        "stackmap/_fast_write.c",
        "stackmap/_ring.c",
    ],
    include_dirs=["stackmap", "kmod/uapi"],
    depends=[
        "stackmap/_fast.h",
        "stackmap/_ring.h",
        "stackmap/_ring_hot.h",
        "kmod/uapi/stackmap.h",
    ],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)

setup(
    ext_modules=[fast],
    cffi_modules=[
        "stackmap/_ring_build.py:ffibuilder",
        "testbed/stackmap_testbed/cost/_echo_build.py:ffibuilder",
        "testbed/stackmap_testbed/load/_load_build.py:ffibuilder",
    ],
)
