"""SMIOC_SYNC with WAIT: what ends the sleep, and what has been done by then."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.locked_socket import WaitingCall
from tests.guest.raw import EOF, SYNC_RX, SYNC_TX, SYNC_WAIT, RawPort
from tests.guest.wire import NIC, connect_pair, peer_loses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.attached import Attached

FOREVER = -1.0
LONG = 300.0
#: When a signal is sent, and how often again: it may come before the sleep has begun.
ALARM, AGAIN = 0.3, 5.0


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """Has signals sent to this process."""
    old = signal.signal(signal.SIGALRM, lambda _signal, _frame: None)

    def set_alarm() -> None:
        signal.setitimer(signal.ITIMER_REAL, ALARM, AGAIN)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def wait(port: RawPort, deadline: float, flags: int = SYNC_TX | SYNC_RX) -> None:
    port.sync(flags | SYNC_WAIT, deadline=deadline)


def test_the_deadline(port: RawPort) -> None:
    deadline = time.monotonic() + 0.2
    wait(port, deadline)
    assert time.monotonic() >= deadline
    assert port.rx.head == port.rx.tail


def test_a_deadline_that_has_passed(two: Attached) -> None:
    """Everything but the sleep happens."""
    port = two.port
    i = port.tx.head
    port.put(i, two.id, b"sent")
    port.tx.set_head((i + 1) % port.tx.n)
    wait(port, 0.0)
    assert two.peer.recv(4) == b"sent"
    two.peer.sendall(b"there")
    port.await_bytes(5)
    wait(port, time.monotonic() - 1)
    assert port.rx.tail == (port.rx.head + 1) % port.rx.n


@pytest.mark.parametrize("deadline", [LONG, FOREVER])
def test_data_ends_the_sleep(two: Attached, deadline: float) -> None:
    later = threading.Timer(0.2, two.peer.sendall, [b"wake up"])
    later.start()
    wait(two.port, deadline if deadline < 0 else time.monotonic() + deadline)
    assert [slot[:2] for slot in two.port.receive()] == [(two.id, b"wake up")]
    later.join()


def test_an_event_ends_the_sleep(two: Attached) -> None:
    later = threading.Timer(0.2, two.peer.shutdown, [socket.SHUT_WR])
    later.start()
    wait(two.port, FOREVER)
    assert two.port.receive() == [(two.id, b"", EOF, 0)]
    later.join()


def test_a_wait_returns_at_once_if_data_is_there(two: Attached) -> None:
    """Seen or not: slots that the application has not taken yet count as something."""
    two.peer.sendall(b"early")
    time.sleep(0.1)
    wait(two.port, FOREVER)
    wait(two.port, FOREVER)
    assert [slot[:2] for slot in two.port.receive()] == [(two.id, b"early")]
    two.port.sync(SYNC_RX)


def test_a_signal_ends_the_sleep(two: Attached, alarm: Callable[[], None]) -> None:
    port = two.port
    i = port.tx.head
    port.put(i, two.id, b"sent before")
    port.tx.set_head((i + 1) % port.tx.n)
    alarm()
    with pytest.raises(InterruptedError):
        wait(port, FOREVER)
    assert two.peer.recv(100) == b"sent before"
    assert port.tx.slot(i).events == 0


def test_closing_the_port_ends_the_sleep_on_its_other_rings() -> None:
    port = RawPort(16, 16, rings=2)
    failed = []

    def sleep() -> None:
        try:
            port.pairs[1].sync(SYNC_RX | SYNC_WAIT, deadline=FOREVER)
        except OSError as error:
            failed.append(error.errno)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    time.sleep(0.3)
    port.memory.close()
    os.close(port.fd)
    sleeper.join(60)
    assert failed == [errno.ENXIO]
    os.close(port.pairs[1].fd)


def test_a_ring_that_is_no_longer_stalled_ends_the_sleep() -> None:
    """Out of buffers, the transmit ring stops; an ACK brings one, and the rest is sent."""
    with RawPort(8, 8, spare=8) as port:
        connections = [connect_pair() for _ in range(16)]
        ids = [port.attach(sock) for _peer, sock in connections]
        sent = 0
        with peer_loses(100):
            while not port.stats()["stalls"]:
                i = port.tx.head
                port.put(i, ids[sent], b"%04d" % sent)
                port.tx.set_head((i + 1) % port.tx.n)
                port.sync(SYNC_TX)
                sent += 1
            stopped_at = port.tx.tail
        # Without SYNC_TX, which would itself send the rest, if the ACK came before the sleep.
        wait(port, FOREVER, SYNC_RX)
        assert port.tx.tail != stopped_at
        deadline = time.monotonic() + 60
        while port.tx.tail != (port.tx.head - 1) % port.tx.n:
            assert time.monotonic() < deadline
            wait(port, time.monotonic() + 0.1)
        for number, (peer, _sock) in enumerate(connections[:sent]):
            assert peer.recv(4) == b"%04d" % number
        for pair in connections:
            for sock in pair:
                sock.close()


def test_wrong_flags(port: RawPort) -> None:
    for flags in (SYNC_WAIT, SYNC_WAIT | SYNC_TX, SYNC_WAIT | SYNC_RX | 16):
        with pytest.raises(OSError, match="Invalid argument"):
            port.sync(flags, deadline=0.0)


# -- the library's waits --


def test_an_exchange_waits_with_and_without_watched_files() -> None:
    here, there = socket.socketpair()
    with RingPort(NIC) as port, here, there:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        for watched in (False, True, False):
            if watched:
                port.watch(here, lambda: None)
            for timeout in (0.2, 0.0, 0.0001):
                before = time.monotonic()
                assert port.exchange(timeout) == []
                assert time.monotonic() - before >= timeout
            later = threading.Timer(0.1, peer.sendall, [b"wake up"])
            later.start()
            (segment,) = port.exchange(None)
            assert (segment.connection, bytes(segment.view)) == (connection, b"wake up")
            later.join()
            if watched:
                port.unwatch(here)
        peer.close()


def test_a_signal_handler_may_raise_out_of_an_exchange() -> None:
    class Enough(Exception):  # noqa: N818 (it is no error)
        pass

    def enough(_signal: int, _frame: object) -> None:
        raise Enough

    old = signal.signal(signal.SIGALRM, enough)
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        with closing(peer):
            port.attach(sock)
            signal.setitimer(signal.ITIMER_REAL, ALARM, AGAIN)
            with pytest.raises(Enough):
                port.exchange(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            peer.sendall(b"still there")
            (segment,) = port.exchange(None)
            assert bytes(segment.view) == b"still there"


def test_a_ring_is_for_one_thread_at_a_time() -> None:
    peer, sock = connect_pair()
    with RingPort(NIC) as port, closing(peer):
        port.attach(sock)
        sleeper = WaitingCall(lambda: port.exchange(LONG))
        sleeper.await_sleep()
        with pytest.raises(OSError) as caught:
            port.exchange()
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(OSError) as caught:
            port.close()
        assert caught.value.errno == errno.EBUSY
        peer.sendall(b"wake up")
        assert sleeper.result() == 0
        assert port.exchange() == []
