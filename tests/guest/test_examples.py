"""README's first program and those of ``examples/`` on rings, with the same clients."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from tests.guest.wire import ADDRESS, PEER_ADDRESS, peer_namespace
from tests.unit.test_examples import *  # noqa: F403 (the tests, and the fixtures they share)
from tests.unit.test_examples import ROOT, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

_forked = multiprocessing.get_context("fork")


class OnRings(Place):
    """Programs run here, on rings of the bound NIC; their clients are beyond it.

    Each runs in a process that is forked from this one: an emulated machine takes half a minute to
    start Python and load what it needs.
    """

    backend = "stackmap"
    address, peer_address = ADDRESS, PEER_ADDRESS

    def __init__(self) -> None:
        super().__init__("")

    @contextmanager
    def python(self, *arguments: str) -> Iterator[tuple[int, IO[str]]]:
        reading, writing = os.pipe()
        process = _forked.Process(target=_run, args=(writing, *arguments))
        process.start()
        os.close(writing)
        try:
            with open(reading) as output:
                assert process.pid
                yield process.pid, output
        finally:
            process.kill()
            process.join()

    @contextmanager
    def clients(self) -> Iterator[None]:
        with peer_namespace():
            yield


def _run(output: int, *arguments: str) -> None:
    """Be Python with these arguments, and with none of the files that the tests have open."""
    os.dup2(output, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(ROOT)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (until the process ends)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = [*arguments]
        runpy.run_path(arguments[0], run_name="__main__")


del place  # noqa: F821 (in its stead:)


@pytest.fixture(scope="module", name="place")
def on_rings() -> OnRings:
    return OnRings()
