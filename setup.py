"""The part of the packaging that pyproject.toml cannot express: extension modules made by cffi."""

from setuptools import setup

setup(cffi_modules=["testbed/_load_build.py:ffibuilder"])
