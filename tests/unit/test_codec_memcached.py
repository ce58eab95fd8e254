"""memcached's commands and replies as messages, with memcached itself at the other end."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackmap.codec import LocalProtocolError, RemoteProtocolError
from stackmap.codec import memcached as mc
from stackmap_testbed.memcached.conformance import (
    missing_programs,
    oracle,
    random_command,
    random_meta_command,
)
from tests.unit.codecs import Searched, cut, outcome, received, sent

if TYPE_CHECKING:
    from collections.abc import Iterator

keys = st.binary(min_size=1, max_size=30).map(lambda key: bytes(33 + byte % 94 for byte in key))
values = st.binary(max_size=200) | st.sampled_from([b"\r\n", b"END\r\n", b"x" * 5000])
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
i32 = st.integers(-(1 << 31), (1 << 31) - 1)
noreply = st.booleans()

_TOKENS = {
    **dict.fromkeys("cfhklqstuvI", st.none()),
    **dict.fromkeys("NRT", i32),
    **dict.fromkeys("CDJE", u64),
    "F": u32,
    "M": st.sampled_from([b"E", b"A", b"P", b"R", b"S", b"I", b"D"]),
    **dict.fromkeys("OPL", keys | st.none()),
}


#: The codec knows the modes of ``ms``, because it refuses others before the value comes.
_SET_MODES = {"M": st.sampled_from([b"E", b"A", b"P", b"R", b"S"])}


@st.composite
def flag_sets(
    draw: st.DrawFn, special: dict[str, st.SearchStrategy[bytes]] | None = None
) -> dict[str, mc.Token]:
    tokens = {**_TOKENS, **(special or {})}
    chosen = draw(st.lists(st.sampled_from(sorted(tokens)), unique=True, max_size=8))
    flags: dict[str, mc.Token] = {flag: draw(tokens[flag]) for flag in chosen}
    return {"b": None, **flags} if draw(st.booleans()) else flags


requests: st.SearchStrategy[mc.Request] = st.one_of(
    st.builds(
        mc.Get, st.lists(keys, min_size=1, max_size=9).map(tuple), st.booleans(), st.none() | i32
    ),
    st.builds(
        mc.Store,
        st.sampled_from(["set", "add", "replace", "append", "prepend"]),
        keys,
        values,
        u32,
        i32,
        st.just(0),
        noreply,
    ),
    st.builds(mc.Store, st.just("cas"), keys, values, u32, i32, u64, noreply),
    st.builds(mc.Delete, keys, noreply),
    st.builds(mc.Count, keys, u64, st.booleans(), noreply),
    st.builds(mc.Touch, keys, i32, noreply),
    st.builds(mc.FlushAll, i32, noreply),
    st.sampled_from([mc.Command((b"version",)), mc.Command((b"stats", b"items")), mc.MetaNoop()]),
    st.builds(mc.MetaGet, keys, flag_sets()),
    st.builds(mc.MetaSet, keys, values, flag_sets(_SET_MODES)),
    st.builds(mc.MetaDelete, keys, flag_sets()),
    st.builds(mc.MetaCount, keys, flag_sets()),
    st.builds(mc.MetaDebug, st.binary(min_size=1, max_size=180), st.just(True)),
)

reply_flags = st.fixed_dictionaries(
    {},
    optional={
        "c": u64, "t": i32, "s": u32, "f": u32, "l": u32, "h": st.integers(0, 1), "O": keys,
        "k": keys, "W": st.none(), "X": st.none(), "Z": st.none(), "b": st.none(),
    },
)  # fmt: skip
words = st.from_regex(r"[A-Z_]{2,9}[!-~]?", fullmatch=True)
replies: st.SearchStrategy[mc.Reply] = st.one_of(
    st.builds(
        mc.Values,
        st.lists(st.builds(mc.Value, keys, values, u32, st.none() | u64), max_size=4).map(tuple),
    ),
    st.sampled_from(
        ["STORED", "NOT_STORED", "EXISTS", "NOT_FOUND", "DELETED", "TOUCHED", "OK", "RESET"]
    ).map(mc.Status),
    st.builds(mc.Number, u64),
    st.just(mc.Version("1.6.18")),
    st.builds(mc.Stats, st.lists(st.tuples(keys, keys), min_size=1, max_size=4).map(tuple)),
    st.sampled_from([mc.Error("ERROR"), mc.Error("CLIENT_ERROR", "bad data chunk")]),
    st.builds(mc.Meta, st.sampled_from(["HD", "EN", "NF", "NS", "EX", "MN"]), reply_flags),
    st.builds(mc.Meta, st.just("VA"), reply_flags, values),
    st.builds(mc.Debug, keys, st.just((("exp", "-1"), ("fetch", "yes")))),
)


@settings(max_examples=40)
@given(st.lists(requests, max_size=8), st.randoms())
def test_requests_arrive_as_they_were(messages: list[mc.Request], generator: random.Random) -> None:
    stream = sent(mc.ClientCodec(), messages)
    server = mc.ServerCodec()
    assert list(received(server, cut(stream, generator))) == messages
    assert server.held == 0


@settings(max_examples=40)
@given(st.lists(replies, max_size=8), st.randoms())
def test_replies_arrive_as_they_were(messages: list[mc.Reply], generator: random.Random) -> None:
    stream = sent(mc.ServerCodec(), messages)
    client = mc.ClientCodec()
    assert list(received(client, cut(stream, generator))) == messages
    assert client.held == 0


pieces = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.integers(0, 1 << 30).map(lambda n: random_command(random.Random(n))[:5000]),
        st.integers(0, 1 << 30).map(lambda n: random_meta_command(random.Random(n))),
        st.sampled_from(
            [
                b"VALUE a 0 3\r\nabc\r\n", b"VALUE a 0 9999999999\r\n", b"VALUE a 1 -3\r\n",
                b"END\r\n", b"STAT a b\r\n", b"VA 2 k\r\n12\r\n", b"VA\r\n", b"VA x\r\n",
                b"HD kYQ= b\r\n", b"HD t\r\n", b"HD tx\r\n", b"ME\r\n", b"12\r\n", b"\r\n",
                b"x" * 700,
            ]
        ),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@settings(max_examples=50)
@given(pieces, st.randoms())
def test_any_bytes_have_one_outcome_at_a_server(stream: bytes, generator: random.Random) -> None:
    def new() -> mc.ServerCodec:
        return mc.ServerCodec(max_value=1000, max_line=600)

    whole = outcome(new(), [stream], 1002)
    assert outcome(new(), cut(stream, generator), 1002) == whole


@settings(max_examples=50)
@given(pieces, st.randoms())
def test_any_bytes_have_one_outcome_at_a_client(stream: bytes, generator: random.Random) -> None:
    whole = outcome(mc.ClientCodec(max_reply=2000), [stream], 2002)
    assert outcome(mc.ClientCodec(max_reply=2000), cut(stream, generator), 2002) == whole


def test_no_byte_is_searched_again() -> None:
    for codec in (mc.ServerCodec(), mc.ClientCodec()):
        codec._data = data = Searched()
        for _ in range(1000):
            codec.receive(b"x" * 10)
            assert codec.next_message() is None
        assert data.searched <= 11 * 1000


# -- the server's end --


@pytest.mark.parametrize(
    ("stream", "messages"),
    [
        (b"\r\n", [mc.Invalid(mc.Error("ERROR"))]),
        (b"get\r\n", [mc.Invalid(mc.Error("ERROR"))]),
        (b"get a\nversion\r\n", [mc.Get((b"a",)), mc.Command((b"version",))]),
        (b"set a 0 0 1\r\nxyz\r\nmn\r\n", ["bad data chunk", "", mc.MetaNoop()]),
        (b"set a 0 0 1 noreply\r\nxyzmn\r\n", [
            mc.Invalid(mc.NoReply(), mc.Store("set", b"a", b"", noreply=True)), mc.MetaNoop()]),
        (b"set a 7 0 2000 noreply\r\n" + bytes(2000) + b"\r\nmn\r\n", [
            mc.Invalid(mc.NoReply(), mc.Store("set", b"a", b"", 7, noreply=True), too_large=True),
            mc.MetaNoop()]),
        (b"set a 0 0 2000\r\n" + bytes(2000) + b"\r\nmn\r\n", ["object too large", mc.MetaNoop()]),
        (b"ms a 2000 q\r\n" + bytes(2000) + b"\r\nmn\r\n", ["object too large", mc.MetaNoop()]),
        (b"ms a 2 MM q\r\nxx\r\nmn\r\n", ["invalid mode", mc.MetaNoop()]),
        (b"ms a 2 v v\r\nxx\r\nmn\r\n", ["duplicate flag", mc.MetaNoop()]),
        (b"mg a\r\nmg a E5 x\r\n", [mc.MetaGet(b"a"), mc.MetaGet(b"a", {"E": 5, "x": None})]),
        (b"mg YQ= b\r\nme YQ b\r\n", ["error decoding key", "bad command line format"]),
        (b"incr a x noreply\r\nincr a x\r\n", ["invalid numeric delta argument"]),
        (b"touch a x\r\ndelete a 5\r\nflush_all x\r\n", ["exptime", "Usage: delete", "exptime"]),
        (b"delete a 0 noreply\r\n", [mc.Delete(b"a", True)]),
        (b"flush_all noreply\r\n", [mc.FlushAll(0, True)]),
        (b"gat 5\r\ngat x a\r\n", [mc.Invalid(mc.Error("ERROR")), "exptime"]),
    ],
)  # fmt: skip
def test_what_a_server_receives(stream: bytes, messages: list[object]) -> None:
    found = list(received(mc.ServerCodec(max_value=1000), [stream]))
    for message, expected in zip(found, messages, strict=True):
        if isinstance(expected, str):
            assert isinstance(message, mc.Invalid)
            assert isinstance(message.error, mc.Error)
            assert expected in message.error.text
        else:
            assert message == expected


def test_quit_ends_a_server() -> None:
    server = mc.ServerCodec()
    assert list(received(server, [b"mn\r\nquit\r\nmn\r\n"])) == [mc.MetaNoop()]
    assert server.must_close
    server.receive(b"mn\r\n")
    assert (server.next_message(), server.held) == (None, 0)


def test_the_binary_protocol_and_long_lines_end_a_server() -> None:
    for stream, reply in (
        (b"\x80\x01" + bytes(22), [b"\x81\x01" + bytes(5) + b"\x81" + bytes(3) + b";" + bytes(5)]),
        (b"x" * 70_000, [b"CLIENT_ERROR line"]),
        (b"GET / HTTP/1.1\r\n", []),
    ):
        server = mc.ServerCodec()
        server.receive(stream)
        with pytest.raises(RemoteProtocolError) as caught:
            server.next_message()
        assert [bytes(part)[:17] for part in caught.value.reply] == reply


def test_flags_of_later_versions_can_be_refused() -> None:
    [message] = received(mc.ServerCodec(later=False), [b"mg a E5\r\n"])
    assert message == mc.Invalid(mc.Error("CLIENT_ERROR", "invalid flag"))


def test_keys_are_sent_back_as_they_came() -> None:
    """memcached takes control characters in them."""
    server = mc.ServerCodec()
    assert server.send(mc.Values((mc.Value(b"\t\x7f", b"x"),)))[0] == b"VALUE \t\x7f 0 1\r\n"
    assert server.send(mc.Meta("HD", {"O": b"\x01", "k": b"\t"})) == [b"HD O\x01 k\t\r\n"]
    for reply in (mc.Values((mc.Value(b"a b", b""),)), mc.Meta("HD", {"k": b"a\nb"})):
        with pytest.raises(LocalProtocolError):
            server.send(reply)
    assert server.send(mc.Encoded(b"as it is")) == [b"as it is"]


def test_values_are_not_copied() -> None:
    value = memoryview(bytearray(5000))
    assert any(part is value for part in mc.ClientCodec().send(mc.Store("set", b"k", value)))
    assert any(part is value for part in mc.ClientCodec().send(mc.MetaSet(b"k", value)))
    server = mc.ServerCodec()
    assert any(part is value for part in server.send(mc.Values((mc.Value(b"k", value),))))
    assert any(part is value for part in server.send(mc.Meta("VA", {}, value)))
    assert server.send(mc.NoReply()) == []


@pytest.mark.parametrize(
    "message",
    [
        mc.Get(()),
        mc.Get((b"a b",)),
        mc.Get((b"x" * 251,)),
        mc.Delete(b""),
        mc.MetaGet(b"a\r\nflush_all"),
        mc.MetaGet(b"x" * 190, {"b": None}),
        mc.MetaGet(b"a", {"O": b"x y"}),
        mc.MetaGet(b"a", {"OO": None}),
        mc.MetaSet(b"a", b"", {" ": None}),
        mc.Command(()),
        mc.Command((b"stats\r\nflush_all",)),
    ],
)
def test_what_a_client_does_not_send(message: mc.Request) -> None:
    with pytest.raises(LocalProtocolError):
        mc.ClientCodec().send(message)


@pytest.mark.parametrize(
    "message",
    [
        mc.Meta("HD", {}, b"x"),
        mc.Meta("VA", {}),
        mc.Error("CLIENT_ERROR", "a\r\nb"),
        mc.Status("OK\r\nX"),
        mc.Values((mc.Value(b"a b", b""),)),
    ],
)
def test_what_a_server_does_not_send(message: mc.Reply) -> None:
    with pytest.raises(LocalProtocolError):
        mc.ServerCodec().send(message)


@pytest.mark.parametrize(
    "line",
    [
        b"VALUE k 0 1\r\nx\r\n",
        b"VALUE k 0 20000\r\n",
        b"STAT a b\r\n",
        b"VA 20000\r\n",
        b"x",
    ],
)
def test_a_reply_without_end_is_bounded(line: bytes) -> None:
    client = mc.ClientCodec(max_reply=10_000)
    found = outcome(client, [line] * 11_000, 10_002)
    assert found == ["the server's reply has more than 10000 bytes"]


def test_an_error_in_a_reply_ends_that_reply() -> None:
    client = mc.ClientCodec()
    stream = b"VALUE a 0 1\r\nx\r\nSERVER_ERROR out of memory\r\nEND\r\n"
    assert list(received(client, [stream])) == [
        mc.Error("SERVER_ERROR", "out of memory"),
        mc.Values(()),
    ]


# -- memcached at the other end --


@pytest.fixture(scope="module")
def memcached() -> Iterator[socket.socket]:
    if missing_programs():
        pytest.skip(f"not installed: {missing_programs()}")
    with oracle() as address, socket.create_connection(address, 10) as sock:
        yield sock


def converse(sock: socket.socket, messages: list[mc.Request]) -> list[mc.Reply]:
    """The replies of memcached to requests that are sent all at once."""
    client = mc.ClientCodec()
    sock.sendall(sent(client, [*messages, mc.Command((b"version",))]))
    found: list[mc.Reply] = []
    while not found or not isinstance(found[-1], mc.Version):
        found += received(client, [sock.recv(1 << 16)])
    return found[:-1]


def test_memcached_understands_all_requests(memcached: socket.socket) -> None:
    flags: dict[str, mc.Token] = {"b": None, "k": None, "O": b"op", "c": None}
    key = b"a \r\n\0"
    found = converse(
        memcached,
        [
            mc.FlushAll(),
            mc.Store("set", b"k", b"v" * 5000, 7, 1000),
            mc.Store("add", b"k", b"x"),
            mc.Store("append", b"k", b"end", noreply=True),
            mc.Store("cas", b"none", b"x", cas=5),
            mc.Get((b"k", b"none"), cas=True),
            mc.Get((b"k",), exptime=50),
            mc.Touch(b"k", 0),
            mc.Touch(b"none", 0),
            mc.Store("set", b"n", b"10"),
            mc.Count(b"n", 5),
            mc.Count(b"n", 10, down=True),
            mc.Delete(b"n"),
            mc.Delete(b"n", noreply=True),
            mc.Get((b"n",)),
            mc.MetaSet(key, b"meta", {**flags, "T": 1000, "F": 9}),
            mc.MetaGet(key, {**flags, "v": None, "t": None, "f": None, "s": None, "h": None}),
            mc.MetaGet(b"none", {"q": None}),
            mc.MetaGet(b"none", {"v": None}),
            mc.MetaDelete(key, {"b": None, "I": None}),
            mc.MetaGet(key, {"b": None, "v": None}),
            mc.MetaSet(key, b"", {"b": None, "C": 1}),
            mc.MetaSet(key, b"", {"b": None, "M": b"E"}),
            mc.MetaDelete(key, {"b": None}),
            mc.MetaDelete(key, {"b": None}),
            mc.MetaCount(b"n", {"N": 0, "J": 41, "v": None}),
            mc.MetaCount(b"n", {"D": 1, "M": b"I", "v": None, "t": None}),
            mc.MetaNoop(),
            mc.MetaDebug(b"n"),
            mc.Command((b"stats", b"reset")),
            mc.Command((b"nonsense",)),
        ],
    )
    value = b"v" * 5000 + b"end"
    items, stored, got, debug = found[4], found[13], found[14], found[25]
    assert isinstance(items, mc.Values)
    assert isinstance(items.items[0].cas, int)
    assert items.items == (mc.Value(b"k", value, 7, items.items[0].cas),)
    assert isinstance(stored, mc.Meta)
    assert isinstance(got, mc.Meta)
    assert isinstance(debug, mc.Debug)
    assert dict(debug.attributes)["fetch"] == "no"
    cas = stored.flags["c"]
    assert found[:3] == [mc.Status("OK"), mc.Status("STORED"), mc.Status("NOT_STORED")]
    # "append" and the second "delete" want no reply.
    assert found[3] == mc.Status("NOT_FOUND")
    assert found[5:13] == [
        mc.Values((mc.Value(b"k", value, 7),)),
        mc.Status("TOUCHED"),
        mc.Status("NOT_FOUND"),
        mc.Status("STORED"),
        mc.Number(15),
        mc.Number(5),
        mc.Status("DELETED"),
        mc.Values(()),
    ]
    assert stored == mc.Meta("HD", {"k": key, "b": None, "O": b"op", "c": cas})
    assert got == mc.Meta(
        "VA",
        {"k": key, "b": None, "O": b"op", "c": cas, "t": 1000, "f": 9, "s": 4, "h": 0},
        b"meta",
    )
    assert found[15:] == [
        mc.Meta("EN"),
        mc.Meta("HD"),
        mc.Meta("VA", {"X": None, "W": None}, b"meta"),
        mc.Meta("EX"),
        mc.Meta("NS"),
        mc.Meta("HD"),
        mc.Meta("NF"),
        mc.Meta("VA", {}, b"41"),
        mc.Meta("VA", {"t": -1}, b"42"),
        mc.Meta("MN"),
        debug,
        mc.Status("RESET"),
        mc.Error("ERROR"),
    ]
