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
from tests.unit.test_examples import (
    ROOT,
    Place,
    Program,
    example,
    proxying,
    test_chat_sends_lines_to_all_others,
    test_proxy_passes_on_each_half_by_itself,
    test_rpc_answers_a_client_that_has_closed_its_half,
)

if TYPE_CHECKING:
    import socket
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


# In their stead: on rings, and of one model each, for that takes long enough.
del place, chat, proxy, rpc  # noqa: F821
del test_one_client_too_many_waits_in_other_models  # noqa: F821
del test_other_models_survive_clients_gone_before_accept  # noqa: F821


@pytest.fixture(scope="module", name="place")
def on_rings() -> OnRings:
    return OnRings()


@pytest.fixture(name="chat")
def bare_chat(place: Place) -> Iterator[Program]:
    with example(place, "chat") as program:
        yield program


@pytest.fixture(name="proxy")
def bare_proxy(place: Place) -> Iterator[tuple[Program, socket.socket]]:
    with proxying(place, "proxy") as program_and_server:
        yield program_and_server


@pytest.fixture(name="rpc")
def bare_rpc(place: Place) -> Iterator[Program]:
    with example(place, "rpc_server") as program:
        yield program


def test_the_chat_of_actors(place: Place) -> None:
    with example(place, "chat_actors") as program:
        test_chat_sends_lines_to_all_others(program)


def test_the_proxy_of_asyncio(place: Place) -> None:
    with proxying(place, "proxy_asyncio") as program_and_server:
        test_proxy_passes_on_each_half_by_itself(program_and_server)


def test_the_rpc_service(place: Place) -> None:
    with example(place, "rpc_service") as program:
        test_rpc_answers_a_client_that_has_closed_its_half(program)
