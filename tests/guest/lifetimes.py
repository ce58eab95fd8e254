"""Ways in which a port's life ends, situations in which they find it, and what must come of it.

``docs/lifetimes.md`` says the same in words: keep the two in step.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from tests.guest.pattern import TRAILER
from tests.guest.peer import Peer
from tests.guest.site import (
    KernelLog,
    Site,
    load_module,
    references,
    remove_module,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from tests.guest.app import App, Nursery

FEW = 4
MANY = 1000
#: Connections that wait to be accepted.
AT_ONCE = 1000
MESSAGE = 1000
#: What a connection's congestion window lets out at first is less: some is sent, some waits.
LONG_MESSAGE = 20_000
SMALL_RING = 16
BUFFER = 4096
#: TCP_USER_TIMEOUT, in milliseconds, where the way to the peer is gone for good.
GIVE_UP_MS = 1500
#: Long enough for what must not happen to happen.
A_WHILE = 0.2


class Round:
    """One application, its peer, and the wire between them."""

    def __init__(
        self, site: Site, app: App, peer: Peer, situation: str, idle_references: int
    ) -> None:
        self.site = site
        self.app = app
        self.peer = peer
        self.situation = situation
        self.idle_references = idle_references
        self.acks_withheld = False

    def start(self) -> None:
        """Connect all, and exchange a first message on each connection."""
        lines = self.peer.lines
        for first in range(0, len(lines), AT_ONCE):
            some = lines[first : first + AT_ONCE]
            self.peer.connect(some)
            self.app.order("accept", ports=[line.sock.getsockname()[1] for line in some])
        self.peer.start()
        self.talk()
        eventually(lambda: self.app.status().pinned == 0, self.app.status)

    # -- steps that situations and endings are made of --

    def talk(self) -> None:
        """A message each way on each connection, checked."""
        self.peer.send(MESSAGE)
        self.app.order("send", size=MESSAGE)
        self.settle()

    def settle(self) -> None:
        """Wait until everything sent has arrived, in both directions."""

        def settled() -> bool:
            status = self.app.status()
            return status.received == self.peer.sent and self.peer.received == status.written

        eventually(settled, self.describe, lambda: sum(self.peer.received))
        self.check_app_is_content()

    def describe(self) -> str:
        """How far the streams are, those that are not at their end by number."""
        status = self.app.status()
        peer = self.peer
        missing = [
            f"{line}: {there} of {sent} bytes at the application, {back} of {written} at the peer"
            for line, (there, sent, back, written) in enumerate(
                zip(status.received, peer.sent, peer.received, status.written, strict=True)
            )
            if (there, back) != (sent, written)
        ]
        ends = collections.Counter(end for end in peer.ends if end)
        return (
            f"{len(missing)} of {len(peer.lines)} connections wait: {missing[:5]}; {status}; "
            f"at the peer ended: {dict(ends)}"
        )

    def check_app_is_content(self) -> None:
        """It has seen no wrong byte and no event but WRITABLE."""
        status = self.app.status()
        assert status.wrong == 0
        assert status.unknown == 0
        assert status.bad == 0
        assert set(status.events) <= {"WRITABLE"}, status.events

    def pass_acks(self) -> None:
        if self.acks_withheld:
            self.site.pass_acks()
            self.acks_withheld = False

    def goes_on(self) -> None:
        """Check that no byte was lost: the streams go on to their end, and close in order."""
        self.pass_acks()
        self.app.order("stall", stalled=False)
        if self.situation == "in_flight":
            before = self.app.status()
            had = sum(self.peer.received)
            eventually(
                lambda: (
                    sum(self.app.status().received) > sum(before.received)
                    and sum(self.peer.received) > had
                ),
                lambda: ("no byte moves any more", before, self.app.status()),
            )
        self.peer.hush()
        self.app.order("hush")
        self.settle()
        self.talk()
        eventually(lambda: self.app.status().pinned == 0, self.app.status)
        self.app.order("close_connections")
        self.check_connections_close()
        self.check_ends({"EOF"})
        assert sum(self.peer.received) == self.app.order("close_port")
        self.app.exit()

    def check_connections_close(self) -> None:
        """The application gets CLOSED for each connection."""
        eventually(
            lambda: self.app.status().events.get("CLOSED") == len(self.peer.lines),
            self.app.status,
            lambda: self.app.status().events.get("CLOSED"),
        )

    def check_ends(self, allowed: Collection[str]) -> None:
        """Each of the peer's connections has ended in one of these ways, and had no wrong byte."""
        eventually(
            lambda: None not in self.peer.ends,
            lambda: f"no end came: {collections.Counter(self.peer.ends)}",
            lambda: collections.Counter(self.peer.ends),
        )
        assert set(self.peer.ends) <= set(allowed), collections.Counter(self.peer.ends)
        assert all(not line.extra for line in self.peer.lines), "wrong bytes"

    def closed_as_ever(self) -> None:
        """The application's sockets are closed: the peer sees what it sees of ordinary ones.

        What the kernel had accepted arrives, then FIN; but where bytes that the peer sent were
        never read, it gets RST.
        """
        if self.acks_withheld:
            time.sleep(A_WHILE)
            assert references() > self.idle_references, "the buffers did not outlive the port"
            self.pass_acks()
        if self.situation == "ring_full":
            self.check_ends({"ECONNRESET", "EPIPE"})
        elif self.situation == "in_flight":
            self.check_ends({"EOF", "ECONNRESET", "EPIPE"})
            downloads = {self.peer.ends[number] for number in DOWNLOADS}
            assert downloads == {"EOF"}, self.peer.ends
        else:
            self.check_ends({"EOF"})
        received = sum(self.peer.received)
        if self.situation == "in_flight":
            assert received >= self.app.promised, "accepted bytes were lost"
        else:
            assert received == self.app.promised


# -- situations -------------------------------------------------------------------------------


def idle(_round: Round) -> None:
    """Messages were exchanged and acknowledged; both sides wait."""


#: In flight: on the first connections the application sends without end, on the others the peer.
DOWNLOADS = range(FEW // 2)
UPLOADS = range(FEW // 2, FEW)


def in_flight(round: Round) -> None:
    """Data flows on every connection, and goes on flowing while the end comes."""
    round.app.order("flood", numbers=list(DOWNLOADS))
    round.peer.flood(UPLOADS)
    eventually(
        lambda: (
            all(round.peer.received[number] > 1 << 16 for number in DOWNLOADS)
            and all(round.app.status().received[number] > 1 << 16 for number in UPLOADS)
        ),
        round.describe,
    )


def acks_withheld(round: Round) -> None:
    """The application's data arrives, but no acknowledgement comes back: its buffers are pinned."""
    round.site.withhold_acks()
    round.acks_withheld = True
    round.app.order("send", size=LONG_MESSAGE)
    eventually(lambda: round.app.status().pending == 0, round.app.status)
    assert round.app.status().pinned > 0
    assert round.app.promised == FEW * (MESSAGE + LONG_MESSAGE)


def ring_full(round: Round) -> None:
    """The application reads no more; the ring is full, TCP's buffers too, and the windows close."""
    round.app.order("stall", stalled=True)
    everyone = range(len(round.peer.lines))
    round.peer.flood(everyone)
    sent: list[int] = []

    def stuck() -> bool:
        nonlocal sent
        before, sent = sent, round.peer.sent
        time.sleep(A_WHILE)
        return before == sent and all(round.app.order("unread"))

    eventually(stuck, lambda: (sent, round.app.order("unread")))


def thousand(round: Round) -> None:
    """A thousand connections, each with a message whose acknowledgement may be under way."""
    total = round.app.order("send", size=MESSAGE)
    eventually(lambda: round.app.promised == total, round.app.status)


SITUATIONS = {f.__name__: f for f in (idle, in_flight, acks_withheld, ring_full, thousand)}


# -- endings ----------------------------------------------------------------------------------


def kill_9(round: Round) -> None:
    round.app.kill()
    round.closed_as_ever()


def close_port(round: Round) -> None:
    """The port is closed and the sockets are kept: they are ordinary ones, and nothing is missing.

    Only what was in the receive ring is gone: it was the application's to read first.
    """
    app, peer = round.app, round.peer
    app.order("hush")
    accepted = app.order("close_port")
    if round.acks_withheld:
        # The sockets hold the module too, one reference each.
        held = references() - len(peer.lines)
        assert held > round.idle_references, "the buffers did not outlive the port"
        round.pass_acks()
    peer.hush()
    app.order("speak_ordinarily")
    peer.shutdown()
    taken = app.order("listen_ordinarily", sent=peer.sent)
    status = app.status()
    assert status.wrong == 0
    eventually(lambda: None not in peer.ends, lambda: ("no end", peer.ends))
    assert set(peer.ends) == {"EOF"}, peer.ends
    assert all(line.extra == TRAILER for line in peer.lines), "wrong bytes"
    received = sum(peer.received)
    if round.situation == "in_flight":
        # The counters were read before the sockets were given back.  More may have come meanwhile,
        # and what TCP had no room for of a slot that it took in part is counted when it goes.
        assert taken >= status.taken
        assert accepted <= received < accepted + BUFFER * len(DOWNLOADS)
    else:
        assert taken == status.taken
        assert received == accepted
    app.exit()


def close_sockets_first(round: Round) -> None:
    """Connections are closed one by one: CLOSED for each, and everything written arrives."""
    app, peer = round.app, round.peer
    app.order("close_connections")
    round.check_connections_close()
    if round.acks_withheld:
        assert app.status().pinned > 0
        app.order("close_port")
        round.closed_as_ever()
    else:
        round.closed_as_ever()
        eventually(lambda: app.status().pinned == 0, app.status)
        app.order("close_port")
    assert peer.received == app.status().written
    app.exit()


def fork_and_exit(round: Round) -> None:
    """Descriptors live on in a child: nothing ends before the last holder of them does."""
    round.app.order("fork", lasting=False)
    if round.situation in ("idle", "thousand"):
        round.talk()
    child = round.app.order("fork", lasting=True)
    round.app.exit()
    time.sleep(A_WHILE)
    assert references() > round.idle_references
    assert round.peer.ends == [None] * len(round.peer.lines)
    os.kill(child, signal.SIGKILL)
    round.closed_as_ever()


def ifdown(round: Round) -> None:
    """The NIC is down for a while: TCP retransmits when it is up again."""
    round.site.link_down()
    time.sleep(A_WHILE)
    round.check_app_is_content()
    round.site.link_up()
    round.goes_on()


def unbind(round: Round) -> None:
    """Open ports go on, with nothing gathered on the NIC; there can be no new ones."""
    left = round.idle_references - round.site.binding_references()
    round.site.unbind()
    assert "not bound" in round.app.order("open_another")
    round.goes_on()
    eventually(
        lambda: references() == left,
        lambda: f"{references()} references after unbinding",
    )
    round.site.bind()


def delete_namespace(round: Round) -> None:
    """A namespace without a name lives as long as a socket of it has bytes to deliver."""
    round.site.delete_app_namespace()
    if round.situation in ("idle", "thousand"):
        round.talk()
    round.app.kill()
    round.closed_as_ever()
    round.site.unplugged()
    round.site.build()


def unplug(round: Round) -> None:
    """The NIC is gone for good: TCP gives up what it cannot deliver, and the application is told.

    What waits for nothing, it learns nothing of.
    """
    app = round.app
    round.site.unplug()
    # Not before: on a slow machine a thousand acknowledgements take longer.
    app.order("give_up", milliseconds=GIVE_UP_MS)
    round.peer.hush()
    if round.situation == "idle":
        time.sleep(A_WHILE)
        round.check_app_is_content()
    app.order("stall", stalled=False)
    failed = {"in_flight": len(DOWNLOADS), "acks_withheld": FEW}.get(round.situation, 0)
    eventually(
        lambda: app.status().pinned == 0 and app.status().events.get("CLOSED", 0) >= failed,
        lambda: ("buffers are pinned for ever", app.status()),
    )
    status = app.status()
    assert status.wrong == 0
    assert status.events.get("ERROR") == status.events.get("CLOSED")
    assert all(not line.extra for line in round.peer.lines), "wrong bytes"
    if failed:
        assert status.events["ERROR"] == failed
        assert status.released_by_reset > 0
    elif round.situation != "thousand":
        assert not status.events
    app.kill()
    round.site.unplugged()
    if not round.site.has_nic(round.site.peer):
        round.acks_withheld = False  # the filter went away with the far end
    round.pass_acks()
    round.site.build()


def remove_the_module(round: Round) -> None:
    """Refused while anything holds it, and nothing changes; granted when the last is gone."""
    assert remove_module() == errno.EWOULDBLOCK
    if round.situation in ("idle", "thousand"):
        round.talk()
    binding = round.site.binding_references()
    round.site.unbind()
    assert remove_module() == errno.EWOULDBLOCK
    round.app.kill()
    if round.acks_withheld:
        time.sleep(A_WHILE)
        assert remove_module() == errno.EWOULDBLOCK, "buffers that TCP still has hold it too"
    others = round.idle_references - binding
    round.idle_references = others  # an unbound NIC does not hold the module
    round.closed_as_ever()
    assert others == 0, "somebody else on this machine uses the module"
    eventually(lambda: remove_module() == 0, lambda: f"{references()} references are left")
    load_module()
    round.site.bind()
    round.idle_references += binding


ENDINGS: dict[str, Callable[[Round], None]] = {
    f.__name__: f
    for f in (
        kill_9, close_port, close_sockets_first, fork_and_exit, ifdown, unbind,
        delete_namespace, unplug, remove_the_module,
    )
}  # fmt: skip


@contextlib.contextmanager
def started(site: Site, nursery: Nursery, situation: str) -> Iterator[Round]:
    """An application with its connections; when it has ended, nothing of it may be left."""
    before = references()
    with nursery.bear() as app:
        rings = {"rx_slots": SMALL_RING} if situation == "ring_full" else {}
        number = app.order("open", namespace=site.app, nic=site.nic, address=site.address, **rings)
        count = MANY if situation == "thousand" else FEW
        with Peer(site.peer, (site.address, number), count) as peer:
            round = Round(site, app, peer, situation, before)
            round.start()
            yield round
    eventually(
        lambda: references() == before,
        lambda: f"{references()} references on the module, {before} before",
    )


def play(site: Site, nursery: Nursery, log: KernelLog, situation: str, ending: str) -> None:
    """One round: an application gets into a situation, meets its end, and leaves nothing behind."""
    with started(site, nursery, situation) as round:
        SITUATIONS[situation](round)
        ENDINGS[ending](round)
    assert log.complaints() == []
