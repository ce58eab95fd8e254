"""The memcached protocol without I/O: replies, whatever way the stream is cut, and its bounds."""

from __future__ import annotations

import base64
import gc
import random
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackmap import Event, Segment, SocketPort
from stackmap.codec.memcached.text import parse_signed, parse_unsigned
from stackmap.memcached import Server, Session, Store
from stackmap.memcached.codec import MAX_GET_LINE, TURN
from stackmap.memcached.session import OUTPUT_LIMIT
from stackmap_testbed.memcached.conformance import random_command

if TYPE_CHECKING:
    from stackmap import Connection
    from stackmap.memcached.store import Item


class NoStatistics:
    def report(self, words: list[bytes]) -> bytes | None:
        return b"END\r\n" if not words else None

    def reset(self) -> None:
        pass


def new_session(store: Store | None = None) -> Session:
    if store is None:
        store = Store(64 << 20, clock=lambda: 1_000_000.0)
    return Session(store, NoStatistics())


def segment_of(data: bytes | memoryview) -> Segment:
    return Segment(cast("Connection", None), memoryview(data), Event.NONE, 0)


def feed(session: Session, data: bytes, size: int | None = None) -> bytes:
    """Everything that is answered to ``data``, given in segments of ``size`` bytes."""
    out = bytearray()
    for start in range(0, len(data), size or len(data)):
        piece = memoryview(data)[start : start + (size or len(data))]
        out += session.respond(segment_of(piece))
        while session.paused:
            session.resume()
            out += session.take_output()
    return bytes(out)


def ask(data: bytes) -> bytes:
    return feed(new_session(), data)


commands = st.one_of(
    st.sampled_from(
        [
            b"get a\r\n", b"gets a b\r\n", b"get a\n", b"\r\n", b" \r\n", b"  get  a  b \r\n",
            b"set a 0 0 3\r\nabc\r\n", b"set a 0 0 0\r\n\r\n", b"set b 7 0 5\r\na\r\nb\n\r\n",
            b"set a 0 0 3 noreply\r\nxyz\r\n", b"set a 0 0 3\r\nabcdef\r\n", b"incr a 1\r\n",
            b"set a x 0 3\r\nabc\r\n", b"append a 0 0 2\r\nzz\r\n", b"cas a 0 0 1 2\r\nq\r\n",
            b"add a 0 0 1\r\n5\r\n", b"gat 0 a b\r\n", b"touch a 10\r\n", b"delete a\r\n",
            b"flush_all\r\n", b"version\r\n", b"stats\r\n", b"nonsense\r\n",
            b"decr a 1 noreply\r\n",
            b"set " + b"k" * 251 + b" 0 0 1\r\nx\r\n", b"get " + b"k" * 251 + b"\r\n",
            b"set big 0 0 3000\r\n" + b"v" * 3000 + b"\r\n", b"get big a\r\n",
            b"set big 0 0 2000000\r\n" + b"\n" * 2000000 + b"\r\n",
            b"get " + b"nokey " * 600 + b"\r\n",
        ]
    ),
    st.integers(0, 2**32).map(
        lambda seed: random_command(random.Random(seed)).replace(b"{cas}", b"1")
    ),
)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(commands, min_size=1, max_size=12).map(b"".join), st.randoms())
def test_the_cuts_do_not_matter(stream: bytes, generator: random.Random) -> None:
    # A line that is too long hangs up only when it arrives cut, so there must be none.
    if any(len(line) > 2048 and not line.startswith(b"get ") for line in stream.split(b"\n")):
        stream = stream[:2000].rpartition(b"\n")[0] + b"\n"
    whole = ask(stream)
    session = new_session()
    out = bytearray()
    start = 0
    while start < len(stream):
        end = start + generator.choice([1, 2, 3, 7, 100, 1448, 4096, 65536, 1 << 20])
        out += feed(session, stream[start:end])
        start = end
    assert bytes(out) == whole


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_small_cuts(size: int) -> None:
    stream = (
        b"set a 5 0 10\r\n0123456789\r\nget a\r\nget a b\r\nset b 0 0 1 noreply\r\nx\r\n"
        b"set c 0 0 3\r\nabcde\r\n\r\nset d 0 0 2000000\r\n" + b"z" * 2_000_000 + b"\r\n"
        b"gets a\r\nincr b 1\r\nset a 0 0 1\r\n"
    )
    assert feed(new_session(), stream, size * 1000 + size) == ask(stream)
    assert feed(new_session(), stream[:150], size) == ask(stream[:150])


# -- values --


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 65536, 1_048_516])
def test_a_value_comes_back(length: int) -> None:
    value = random.Random(length).randbytes(length)
    session = new_session()
    stream = b"set k 0 0 %d\r\n%b\r\n" % (length, value)
    assert feed(session, stream, 4096) == b"STORED\r\n"
    assert feed(session, b"get k\r\n") == b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (length, value)


def test_a_value_that_is_too_large_is_swallowed() -> None:
    session = new_session()
    too_large = b"set k 0 0 1048517\r\n" + b"get k\r\n" * 149789
    assert feed(session, b"set k 0 0 1\r\nx\r\n") == b"STORED\r\n"
    stream = too_large[: 1048517 + 19] + b"\r\nversion\r\nget k\r\n"
    reply = feed(session, stream, 4000)
    assert reply.startswith(b"SERVER_ERROR object too large for cache\r\nVERSION ")
    assert reply.endswith(b"\r\nEND\r\n")
    assert reply.count(b"\r\n") == 3


def test_received_views_are_not_kept() -> None:
    session = new_session()
    for part in (b"set k 0 0 10000\r\n", b"v" * 9000, b"v" * 1000 + b"\r\nget", b" k\r\nge"):
        buffer = bytearray(part)
        view = memoryview(buffer)
        session.receive(view)
        view.release()
        buffer.clear()  # BufferError if a slice of the view were left
    assert bytes(session.take_output()).startswith(b"STORED\r\nVALUE k 0 10000\r\nvvv")


def test_no_cycles_are_made() -> None:
    session = new_session()
    gc.collect()
    for seed in range(2000):
        command = random_command(random.Random(seed)).replace(b"{cas}", b"1")
        if len(command) < 2000:
            feed(session, command, 50)
    assert gc.collect() == 0


# -- bounds --


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 2049,
        b"set " + b"x" * 2049,
        b" " * 101 + b"get " + b"k " * 1500,
        b"get " + b"k " * (MAX_GET_LINE // 2),
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.0\r\n",
        b"quit\r\n",
    ],
)
def test_hanging_up(data: bytes) -> None:
    session = new_session()
    assert feed(session, data, 4096) == b""
    assert session.hang_up
    assert feed(session, b"version\r\n") == b""


def test_a_key_in_base64_is_not_taken_for_the_rest_of_a_line() -> None:
    """Such keys may contain what ends words and lines."""
    session = new_session()
    for key, value in ((b"a b", b"1"), (b"a\r\nget b", b"2")):
        line = b"ms %b 1 b\r\n%b\r\n" % (base64.b64encode(key), value)
        assert feed(session, line) == b"HD\r\n"
    feed(session, b"set a 0 0 1\r\nA\r\nset b 0 0 1\r\nB\r\n")
    a, b = b"VALUE a 0 1\r\nA\r\n", b"VALUE b 0 1\r\nB\r\n"
    assert feed(session, b"get a b\r\n") == a + b + b"END\r\n"
    assert feed(session, b"get a\r\nget b\r\n") == a + b"END\r\n" + b + b"END\r\n"
    assert feed(session, b"get a\r\n") == a + b"END\r\n"
    for key, value in ((b"a b", b"1"), (b"a\r\nget b", b"2")):
        line = b"mg %b b v\r\n" % base64.b64encode(key)
        assert feed(session, line) == b"VA 1\r\n%b\r\n" % value


@pytest.mark.parametrize("way", ["A", "P", "count"])
def test_it_stays_so_when_its_value_grows(way: str) -> None:
    session = new_session()
    key = base64.b64encode(b"a b")
    feed(session, b"ms %b 1 b\r\n9\r\n" % key)
    if way == "count":
        assert feed(session, b"ma %b b v\r\n" % key) == b"VA 2\r\n10\r\n"
    else:
        feed(session, b"ms %b 1 b M%b\r\n9\r\n" % (key, way.encode()))
    assert feed(session, b"get a b\r\n") == b"END\r\n"


def test_a_large_value_goes_out_in_pieces_of_a_turn() -> None:
    session = new_session()
    value = bytes(range(256)) * (3 * OUTPUT_LIMIT // 256)
    assert feed(session, b"ms k %d F5\r\n%b\r\n" % (len(value), value)) == b"HD\r\n"
    first = session.respond(segment_of(b"mg k v f Ox\r\nmn\r\n"))
    assert session.paused
    assert len(first) < OUTPUT_LIMIT + 100
    rest = bytearray()
    while session.paused:
        session.resume()
        rest += session.take_output()
    assert first + rest == b"VA %d f5 Ox\r\n%b\r\nMN\r\n" % (len(value), value)


def test_times_of_meta_commands() -> None:
    now = 1_000_000.0
    session = new_session(store := Store(64 << 20, clock=lambda: now))
    feed(session, b"ms k 1 T100\r\nx\r\n")
    now += 30
    store.tick()
    assert feed(session, b"mg k h l t u\r\n") == b"HD h0 l30 t70\r\n"
    # The second stands after what it changes.
    assert feed(session, b"mg k h l t T50 t\r\n").startswith(b"CLIENT_ERROR duplicate")
    assert feed(session, b"mg k l T50 h t\r\n") == b"HD l30 h0 t50\r\n"
    now += 10
    store.tick()
    assert feed(session, b"mg k t h l R30\r\n") == b"HD t40 h1 l10\r\n"
    assert feed(session, b"mg k R41 t\r\n") == b"HD t40 W\r\n"
    assert feed(session, b"mg k R41 t\r\n") == b"HD t40 Z\r\n"
    assert feed(session, b"me k\r\n") == b"ME k exp=-40 la=0 cas=1 fetch=yes cls=1 size=61\r\n"
    assert feed(session, b"ms n 1\r\n9\r\nma n T20 t\r\n") == b"HD\r\nHD t20\r\n"
    now += 20
    store.tick()
    assert feed(session, b"mg n q\r\nmg k t\r\n") == b"HD t20 Z\r\n"
    now += 20
    store.tick()
    assert feed(session, b"mg k N9 t\r\n") == b"HD t9 W\r\n"


def test_a_stale_item_has_one_winner() -> None:
    session = new_session()
    feed(session, b"ms k 3\r\nold\r\nmd k I T30\r\n")
    assert feed(session, b"mg k v c\r\n") == b"VA 3 c2 X W\r\nold\r\n"
    assert feed(session, b"mg k v t\r\n") == b"VA 3 t30 Z X\r\nold\r\n"
    # With the number of the value before, it may replace the value, which stays stale.
    assert feed(session, b"ms k 3 C1 c\r\nnew\r\n") == b"EX c0\r\n"
    assert feed(session, b"ms k 3 C1 I c\r\nnew\r\n") == b"HD c3\r\n"
    assert feed(session, b"mg k v\r\n") == b"VA 3 Z X\r\nnew\r\n"
    assert feed(session, b"ms k 3 C3\r\nnow\r\n") == b"HD\r\n"
    assert feed(session, b"mg k v\r\n") == b"VA 3\r\nnow\r\n"


@pytest.mark.parametrize("size", [1, 23, 24, 100])
def test_the_binary_protocol_is_refused_in_its_own_form(size: int) -> None:
    session = new_session()
    request = bytes([0x80, 0x0A]) + bytes(10) + b"abcd" + bytes(8)
    reply = feed(session, request + b"more", size)
    magic, opcode, key_length, extras, _type, status, length, opaque, cas = struct.unpack(
        ">BBHBBHI4sQ", reply[:24]
    )
    assert (magic, opcode, key_length, extras, opaque, cas) == (0x81, 0x0A, 0, 0, b"abcd", 0)
    assert status == 0x81
    assert reply[24:] == b"the binary protocol is not supported, use the text protocol"
    assert length == len(reply) - 24
    assert session.refused


@pytest.mark.parametrize(
    "data",
    [b"x" * 2048, b"get " + b"k " * 2000, b" " * 100 + b"gets " + b"k " * 2000, b"x\x80\r\n"],
)
def test_not_hanging_up(data: bytes) -> None:
    session = new_session()
    feed(session, data, 4096)
    assert not session.hang_up
    assert feed(session, b"\r\nversion\r\n").endswith(b"\r\n")


def test_output_is_put_off_until_it_is_taken() -> None:
    session = new_session()
    value = b"v" * 1_000_000
    feed(session, b"set k 0 0 1000000\r\n" + value + b"\r\n")
    stream = b"get k\r\n" * 20 + b"get" + b" k" * 20 + b"\r\n" + b"version\r\n"
    session.receive(stream)
    rounds = 1
    total = len(session.take_output())
    session.receive(b"version\r\n")
    assert session.take_output() == b""
    while session.paused:
        session.resume()
        output = session.take_output()
        assert len(output) <= OUTPUT_LIMIT + len(value) + 2000
        total += len(output)
        rounds += 1
    assert rounds >= 40
    assert total > 40 * len(value)
    assert output.count(b"VERSION") == 2


class CountingStore(Store):
    """It knows how many keys were looked up."""

    def __init__(self) -> None:
        super().__init__(64 << 20, clock=lambda: 1_000_000.0)
        self.looked_up = 0

    def get(self, key: bytes) -> Item | None:
        self.looked_up += 1
        return super().get(key)

    def touch(self, key: bytes, exptime: int) -> Item | None:
        self.looked_up += 1
        return super().touch(key, exptime)


@pytest.mark.parametrize(
    "stream",
    [
        b"get" + b" k" * 100_000 + b"\r\n",
        b"  gets  " + b" k " * 100_000 + b"\r\n",
        b"gat 0" + b" k" * 30_000 + b"\r\n",
        b"get k\r\n" * 9000,
        b"get a b c\r\n" * 5000,
        (b"get" + b" k" * 1000 + b"\r\n") * 20,
    ],
)
def test_the_work_of_a_turn_is_bounded(stream: bytes) -> None:
    store = CountingStore()
    session = new_session(store)
    session.receive(stream)
    looked_up = [store.looked_up]
    while session.paused:
        before = store.looked_up
        session.resume()
        looked_up.append(store.looked_up - before)
    expected = stream.count(b" k") + 3 * stream.count(b" a b c")
    assert sum(looked_up) == expected
    # A command of several keys may begin at the end of a turn.
    assert max(looked_up) <= TURN + 1


def test_a_report_is_sent_in_turns() -> None:
    with SocketPort() as port:
        store = Store(64 << 20)
        server = Server(port, [], store)
        session = Session(store, server.statistics)
        keys = [b"key-%d" % number for number in range(3000)]
        for key in keys:
            store.set(key, 0, 0, b"x")
        session.receive(b"stats cachedump 1 0\r\nversion\r\n")
        lines = [session.take_output().count(b"\n")]
        store.delete(b"key-5")
        while session.paused:
            session.resume()
            lines.append(session.take_output().count(b"\n"))
        assert max(lines) <= TURN
        assert sum(lines) == 2999 + 2


def test_a_long_line_takes_no_more_memory_than_its_bytes() -> None:
    session = new_session()
    session.receive(b"get")
    for _ in range(30):
        session.receive(b" k" * 10_000)
    tracemalloc.start()
    try:
        session.receive(b"\r\n")
        while session.paused:
            session.resume()
        assert session.take_output() == b"END\r\n"
        # A copy of the line; the keys alone would take 10 MB.
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_value_takes_no_more_memory_than_what_came_of_it() -> None:
    session = new_session()
    tracemalloc.start()
    try:
        session.receive(b"set k 0 0 1000000\r\nx")
        assert tracemalloc.get_traced_memory()[1] < 10_000
        assert session.held == 1
    finally:
        tracemalloc.stop()


def test_time_is_linear() -> None:
    """A long line in small segments: searching it anew each time would take minutes."""
    session = new_session()
    start = time.process_time()
    line = b"get " + b"k" * 249 + b" "
    feed(session, line + (b"k" * 249 + b" ") * 8000 + b"\r\n", 64)
    assert time.process_time() - start < 10


# -- numbers --


@pytest.mark.parametrize(
    ("word", "number"),
    [
        (b"0", 0), (b"007", 7), (b"+5", 5), (b"18446744073709551615", 2**64 - 1), (b"1\t", 1),
        (b"\t1", 1), (b"1 x", 1), (b"-18446744073709551615", 1), (b"0" * 9000 + b"1", 1),
        (b"18446744073709551616", None), (b"-1", None), (b"x", None), (b"1x", None), (b"", None),
        (b"1_0", None), (b"9" * 9000, None), (b"+", None), (b"\xb2", None),
    ],
)  # fmt: skip
def test_unsigned_numbers(word: bytes, number: int | None) -> None:
    assert parse_unsigned(word) == number


@pytest.mark.parametrize(
    ("word", "number"),
    [
        (b"0", 0), (b"-1", -1), (b"+5", 5), (b"2147483647", 2**31 - 1), (b"2147483648", -(2**31)),
        (b"9999999999999", 1316134911), (b"9223372036854775808", None), (b"1.5", None), (b"", None),
    ],
)  # fmt: skip
def test_signed_numbers(word: bytes, number: int | None) -> None:
    assert parse_signed(word) == number
