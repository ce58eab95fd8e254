"""The part of the packaging that pyproject.toml cannot express: extension modules made by cffi."""

from setuptools import setup

setup(cffi_modules=["stackmap/_ring_build.py:ffibuilder", "testbed/_load_build.py:ffibuilder"])
