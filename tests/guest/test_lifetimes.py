"""Every ending in every situation; ``STACKMAP_ROUNDS`` rounds of each."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from tests.guest.app import Nursery
from tests.guest.commands import sh
from tests.guest.lifetimes import ENDINGS, SITUATIONS, play, started
from tests.guest.site import KernelLog, Site, references, remove_module
from tests.guest.victim import MAX_FILES
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = int(os.environ.get("STACKMAP_ROUNDS", "0"))
#: Without a number of rounds, one round of what covers the others.
SHORT = {
    "idle": ("remove_the_module",),
    "in_flight": tuple(ENDINGS),
    "acks_withheld": tuple(ENDINGS),
    "ring_full": ("kill_9", "close_port", "close_sockets_first"),
    "thousand": (),
}
CASES = [
    (situation, ending)
    for situation in SITUATIONS
    for ending in ENDINGS
    if ROUNDS or ending in SHORT[situation]
]


@pytest.fixture(scope="session", autouse=True)
def nic() -> None:
    """No NIC is bound but the site's: the module is unloaded in between."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    sh("modprobe veth; modprobe sch_netem")
    # The orphans of other tests hold the module until TCP destroys them.
    eventually(lambda: references() == 0, lambda: f"{references()} references")
    site = Site()
    site.build()
    yield site
    site.remove()


@pytest.fixture(scope="module")
def kernel_log() -> Iterator[KernelLog]:
    log = KernelLog()
    yield log
    log.close()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("situation", "ending"), CASES)
def test_lifetime(
    site: Site, nursery: Nursery, kernel_log: KernelLog, situation: str, ending: str
) -> None:
    for number in range(max(ROUNDS, 1)):
        try:
            play(site, nursery, kernel_log, situation, ending)
        except BaseException as error:
            error.add_note(f"in round {number}")
            site.remove()
            site.build()
            raise


def test_bytes_in_the_receive_ring_count_as_read(site: Site, nursery: Nursery) -> None:
    """An ordinary socket that is closed with unread bytes answers with RST; here comes a FIN."""
    with started(site, nursery, "idle") as round:
        taken = round.app.status().taken
        round.app.order("stall", stalled=True)
        round.peer.send(100)
        more = 100 * len(round.peer.lines)
        eventually(lambda: round.app.status().taken == taken + more, round.app.status)
        round.app.kill()
        round.check_ends({"EOF"})


def test_a_socket_that_was_attached_holds_the_module(site: Site, nursery: Nursery) -> None:
    with started(site, nursery, "idle") as round:
        sockets = len(round.peer.lines)
        round.app.order("close_port")
        site.unbind()
        # Each by its proto_ops until closed, by its upper layer protocol until destroyed.
        eventually(lambda: references() == 2 * sockets, lambda: f"{references()} references")
        assert remove_module() == errno.EWOULDBLOCK
        round.app.order("speak_ordinarily")
        round.app.kill()
        eventually(lambda: references() == 0, lambda: f"{references()} references")
        site.bind()
