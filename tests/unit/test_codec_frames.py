"""Lines, records, frames and typed messages, however the stream is cut."""

from __future__ import annotations

import pickle
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackmap.codec import (
    Buffer,
    Codec,
    Fixed,
    LengthPrefixed,
    Lines,
    LocalProtocolError,
    MsgspecFrames,
    ProtocolError,
    RemoteProtocolError,
)
from stackmap_testbed.memcached.conformance import wait_for_listener
from tests.unit.codecs import Searched, cut, outcome, received, sent

if TYPE_CHECKING:
    from collections.abc import Callable


class Point(msgspec.Struct, tag=True):
    x: int
    name: str


class Blob(msgspec.Struct, tag=True):
    data: bytes


def typed(format: Any = "json") -> MsgspecFrames[Point | Blob, Point | Blob]:
    return MsgspecFrames(Point | Blob, format=format, max_size=1000)


#: Codecs of bytes, how large a message may be, and what they may hold.
BYTES: dict[str, tuple[Callable[[], Codec[bytes, Buffer]], int, int]] = {
    "lines": (lambda: Lines(max_length=40), 40, 40),
    "lines, CR": (lambda: Lines(max_length=40, strip_cr=True), 40, 41),
    "lines, long delimiter": (lambda: Lines(b"\0--\0", max_length=40), 40, 43),
    "fixed": (lambda: Fixed(5), 5, 4),
    "frames of 1": (lambda: LengthPrefixed(header_size=1), 255, 255),
    "frames of 2": (lambda: LengthPrefixed(header_size=2, max_size=300), 300, 301),
    "frames of 4": (lambda: LengthPrefixed(byteorder="little", max_size=300), 300, 303),
    "frames of 8": (lambda: LengthPrefixed(header_size=8, max_size=300), 300, 307),
}
kinds = st.sampled_from(sorted(BYTES))


@settings(max_examples=80)
@given(kinds, st.lists(st.binary(max_size=40), max_size=12), st.randoms())
def test_what_is_sent_arrives_however_it_is_cut(
    kind: str, messages: list[bytes], generator: random.Random
) -> None:
    make, _, _ = BYTES[kind]
    if kind == "fixed":
        messages = [message[:5].ljust(5) for message in messages]
    elif kind.startswith("lines"):
        messages = [message.replace(b"\n", b"").replace(b"\0--\0", b"") for message in messages]
        messages = [message.rstrip(b"\r\0-") for message in messages]
    stream = sent(make(), messages)
    codec = make()
    assert list(received(codec, cut(stream, generator))) == messages
    assert codec.held == 0
    codec.receive_eof()
    assert codec.next_message() is None


@settings(max_examples=80)
@given(kinds, st.lists(st.binary(max_size=30), max_size=20), st.randoms())
def test_any_bytes_have_one_outcome(
    kind: str, pieces: list[bytes], generator: random.Random
) -> None:
    make, _, bound = BYTES[kind]
    stream = b"".join(pieces)
    whole = outcome(make(), [stream] if stream else [], bound)
    assert outcome(make(), cut(stream, generator), bound) == whole


@pytest.mark.parametrize("kind", sorted(BYTES))
def test_the_largest_message_and_the_next(kind: str) -> None:
    make, size, _ = BYTES[kind]
    message = b"x" * size
    codec = make()
    assert list(received(codec, [sent(codec, [message])])) == [message]
    with pytest.raises(LocalProtocolError):
        codec.send(message + b"x")
    with pytest.raises(LocalProtocolError):
        codec.send(memoryview(message + b"x"))
    assert list(received(codec, [sent(codec, [message])])) == [message]


@pytest.mark.parametrize("size", range(1, 9))
def test_a_delimiter_that_arrives_in_pieces(size: int) -> None:
    stream = b"one\0--\0two\0-\0\0--\0\0--\0"
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert list(received(Lines(b"\0--\0"), pieces)) == [b"one", b"two\0-\0", b""]


def test_a_payload_is_not_copied() -> None:
    payload = memoryview(bytearray(100))
    for codec in (Lines(max_length=100), Fixed(100), LengthPrefixed()):
        assert any(buffer is payload for buffer in codec.send(payload))


def test_the_size_of_a_view_is_in_bytes() -> None:
    view = memoryview(bytes(400)).cast("i")
    header, payload = LengthPrefixed(header_size=2).send(view)
    assert header == (400).to_bytes(2, "big")
    assert payload is view


def test_line_ends() -> None:
    codec = Lines(strip_cr=True)
    assert list(received(codec, [b"a\r\nb\n\r\n\n\r\r\n"])) == [b"a", b"b", b"", b"", b"\r"]
    assert list(received(Lines(), [b"a\r\n"])) == [b"a\r"]
    with pytest.raises(LocalProtocolError, match="delimiter"):
        codec.send(b"a\nb")
    with pytest.raises(TypeError, match="a line is bytes, not a str"):
        codec.send("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [Lines, lambda: Fixed(9), LengthPrefixed])
def test_a_message_that_is_cut_off_is_an_error(make: Callable[[], Codec[bytes, Buffer]]) -> None:
    codec = make()
    codec.receive(b"\0\0\0")
    assert codec.next_message() is None
    codec.receive_eof()
    with pytest.raises(RemoteProtocolError, match="within a message"):
        codec.next_message()


def test_a_header_that_announces_too_much_is_refused_at_once() -> None:
    codec = LengthPrefixed(max_size=1 << 20)
    codec.receive((1 << 20).to_bytes(4, "big"))
    assert codec.next_message() is None
    codec = LengthPrefixed(max_size=1 << 20)
    codec.receive((1 + (1 << 20)).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="1048577"):
        codec.next_message()


def test_no_byte_is_searched_again() -> None:
    codec = Lines(b"\r\n", max_length=10_000)
    codec._data = data = Searched()
    for _ in range(1000):
        codec.receive(b"x" * 10)
        assert codec.next_message() is None
    # The last byte might have been the first one of a delimiter.
    assert data.searched <= 11 * 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lines(b""),
        lambda: Lines(max_length=-1),
        lambda: Fixed(0),
        lambda: LengthPrefixed(header_size=3),  # type: ignore[arg-type]
        lambda: LengthPrefixed(byteorder="middle"),  # type: ignore[arg-type]
        lambda: LengthPrefixed(header_size=1, max_size=256),
        lambda: MsgspecFrames(Point, format="yaml"),  # type: ignore[arg-type]
        lambda: MsgspecFrames(int | None),
        lambda: MsgspecFrames(Any),
    ],
)
def test_wrong_arguments(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


# -- typed messages --

points = st.builds(Point, x=st.integers(-(2**63), 2**63 - 1), name=st.text(max_size=20))
blobs = st.builds(Blob, data=st.binary(max_size=100))


@settings(max_examples=30)
@given(st.sampled_from(["json", "msgpack"]), st.lists(points | blobs, max_size=9), st.randoms())
def test_typed_messages_arrive_as_they_were(
    format: str, messages: list[Point | Blob], generator: random.Random
) -> None:
    stream = sent(typed(format), messages)
    assert list(received(typed(format), cut(stream, generator))) == messages


@settings(max_examples=80)
@given(st.sampled_from(["json", "msgpack"]), st.lists(st.binary(max_size=60)))
def test_payloads_of_any_bytes(format: str, payloads: list[bytes]) -> None:
    stream = sent(LengthPrefixed(), payloads)
    outcome(typed(format), [stream], 1003)


@pytest.mark.parametrize(
    ("format", "payload"),
    [
        ("json", b""),
        ("json", b'{"type":"Point","x":"1","name":"a"}'),
        ("json", b'{"type":"Other"}'),
        ("json", b"[" * 900),
        ("json", b'{"type":"Point","x":1,"name":"\xff"}'),
        ("msgpack", b"\xa1\xff"),
        ("msgpack", b"\x91" * 900),
    ],
)
def test_a_message_of_another_type(format: str, payload: bytes) -> None:
    codec = typed(format)
    good = Point(1, "a")
    stream = sent(codec, [good]) + sent(LengthPrefixed(), [payload])
    assert outcome(codec, [stream], 1003)[:1] == [good]
    assert codec.held == 0
    with pytest.raises(RemoteProtocolError, match="not valid"):
        codec.next_message()


@pytest.mark.parametrize("message", [object(), 1 << 70, "\ud800", "x" * 1001])
@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_messages_that_cannot_be_encoded(format: Any, message: object) -> None:
    codec: MsgspecFrames[int, object] = MsgspecFrames(int, format=format, max_size=1000)
    if format == "json" and message == 1 << 70:
        assert codec.send(message)
        return
    with pytest.raises(LocalProtocolError):
        codec.send(message)


# -- errors, and packages that are not installed --


def test_kinds_of_errors() -> None:
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(ProtocolError, ValueError)
    error = pickle.loads(pickle.dumps(RemoteProtocolError("no", [b"a", memoryview(b"b")])))
    assert (str(error), error.reply) == ("no", [b"a", b"b"])


def test_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec.json", None)
    with pytest.raises(ImportError, match=r"needs msgspec; install stackmap\[codecs\]"):
        MsgspecFrames(Point)


def test_without_any_extra() -> None:
    program = (
        "import sys\n"
        "sys.modules['h11'] = sys.modules['msgspec'] = None\n"
        "import stackmap.codec, stackmap.codec.memcached\n"
        "try:\n"
        "    import stackmap.codec.http1\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.stdout == (
        "stackmap.codec.http1 needs h11; install stackmap[codecs], or h11 itself\n"
    ), run.stderr


# -- the guide --


def blocks() -> list[str]:
    guide = Path(__file__).resolve().parents[2] / "docs" / "codecs.md"
    return re.findall(r"^```python\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)


def test_the_first_program_of_the_guide() -> None:
    program, _, _ = blocks()
    program += (
        "import sys\n"
        "sys.stdout.write('ready')\n"
        "sys.stdout.flush()\n"
        "serve(('127.0.0.1', int(sys.argv[1])), 'sockets')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = reserved.getsockname()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(address[1])], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(5) == b"ready"
            wait_for_listener(address)
            with socket.create_connection(address, 30) as sock:
                client: MsgspecFrames[dict[str, int], dict[str, object]] = MsgspecFrames(
                    dict[str, int]
                )
                asked: list[dict[str, object]] = [{"left": n, "right": 1} for n in range(100)]
                asked.append({"left": "no"})
                sock.sendall(sent(client, asked))
                found: list[dict[str, int]] = []
                while data := sock.recv(1000):
                    found += received(client, [data])
            assert found == [{"sum": n + 1} for n in range(100)]
        finally:
            process.kill()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=30)), st.binary(max_size=20), st.randoms())
def test_the_codec_of_the_guide(
    messages: list[bytes], garbage: bytes, generator: random.Random
) -> None:
    *_, program = blocks()
    names: dict[str, Any] = {}
    exec("from stackmap.codec import *\n" + program, names)
    make = names["Netstrings"]
    stream = sent(make(), messages)
    assert list(received(make(), cut(stream, generator))) == messages
    whole = outcome(make(), [stream + garbage], 100_006)
    assert whole[: len(messages)] == messages
    assert outcome(make(), cut(stream + garbage, generator), 100_006) == whole
