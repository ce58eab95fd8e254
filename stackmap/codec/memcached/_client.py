"""The client's end: requests out, replies in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, cast

from stackmap.codec._buffered import Buffered
from stackmap.codec._codec import size_of
from stackmap.codec._errors import LocalProtocolError, RemoteProtocolError

from ._messages import (
    Command,
    Count,
    Debug,
    Delete,
    Error,
    FlushAll,
    Get,
    Meta,
    MetaCode,
    MetaCount,
    MetaDebug,
    MetaDelete,
    MetaGet,
    MetaNoop,
    MetaSet,
    Number,
    Quit,
    Reply,
    Request,
    Stats,
    Status,
    Store,
    Touch,
    Value,
    Values,
    Version,
)
from .flags import check_key, encode_flags, encode_key, parse_response_flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackmap.codec._codec import Buffer

_META_CODES = frozenset((b"HD", b"EN", b"NF", b"NS", b"EX", b"MN"))
_META_VERBS = {MetaGet: b"mg", MetaDelete: b"md", MetaCount: b"ma"}
_STATUS = re.compile(rb"[A-Z_]+( [ -~]*)?\Z")
_WORD = re.compile(rb"[^\x00-\x20]+\Z")
#: Digits, and the spaces that decr pads a number with.
_NUMBER = re.compile(rb"\d{1,20} *\Z")
#: What an item of a reply takes besides the bytes of its value.
_OVERHEAD = 512


class ClientCodec(Buffered[Reply, Request]):
    """Sends commands, classic and meta ones, and receives replies in the order of the commands.

    A reply to a retrieval or to ``stats`` is one message with all of its lines.  Which request a
    reply belongs to is the caller's to know: a command with ``noreply`` has none, nor has a meta
    command with flag ``q`` if the reply is the usual one; :class:`MetaNoop` tells the end of such a
    series.

    Args:
        max_reply: how many bytes one reply may have, about 500 for each item in it added.

    Raises:
        ValueError: the bound is not positive.
    """

    __slots__ = ("_complete", "_items", "_length", "_lines", "_max_reply", "_quit", "_searched",
                 "_size")  # fmt: skip

    def __init__(self, *, max_reply: int = 16 << 20) -> None:
        if max_reply <= 0:
            raise ValueError("max_reply is a number of bytes above 0")
        super().__init__()
        self._max_reply = max_reply
        self._searched = 0
        #: The items or lines of the reply so far, and what they take.
        self._items: list[Value] = []
        self._lines: list[tuple[bytes, bytes]] = []
        self._size = 0
        #: What makes a message of the value being received, and its length.
        self._complete: Callable[[bytes], Reply | None] | None = None
        self._length = 0
        self._quit = False

    @property
    def held(self) -> int:
        """How many bytes of the server wait in the codec."""
        return len(self._data) + self._size

    @property
    def must_close(self) -> bool:
        """Whether this end said ``quit``."""
        return self._quit

    def _unfinished(self) -> bool:
        return bool(self._data or self._size or self._complete is not None)

    def _fail(self, error: RemoteProtocolError) -> RemoteProtocolError:
        self._start_reply()
        self._complete = None
        return super()._fail(error)

    # -- receiving --

    def _cut(self) -> Reply | None:
        while True:
            if self._complete is not None:
                if len(self._data) < self._length + 2:
                    return None
                reply = self._cut_value(self._complete)
            else:
                line = self._cut_line()
                if line is None:
                    return None
                try:
                    reply = self._parse(line)
                except RemoteProtocolError:
                    raise
                except (ValueError, IndexError) as error:
                    raise _bad_line(line) from error
            if reply is not None:
                self._start_reply()
                return reply

    def _start_reply(self) -> None:
        self._items = []
        self._lines = []
        self._size = 0

    def _cut_line(self) -> bytes | None:
        data = self._data
        end = data.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(data)
        self._check_size(self._searched if end < 0 else end)
        if end < 0:
            return None
        line = bytes(data[: end - 1 if data.endswith(b"\r", 0, end) else end])
        del data[: end + 1]
        self._searched = 0
        return line

    def _cut_value(self, complete: Callable[[bytes], Reply | None]) -> Reply | None:
        data = self._data
        length = self._length
        if not data.startswith(b"\r\n", length):
            raise RemoteProtocolError("the server's value does not end where its line says")
        with memoryview(data) as view:
            value = bytes(view[:length])
        del data[: length + 2]
        self._complete = None
        return complete(value)

    def _check_size(self, size: int) -> None:
        if self._size + size > self._max_reply:
            raise RemoteProtocolError(f"the server's reply has more than {self._max_reply} bytes")

    def _expect_value(self, length: int, complete: Callable[[bytes], Reply | None]) -> None:
        if length < 0:
            raise ValueError("a length is not negative")
        self._check_size(length)
        self._complete = complete
        self._length = length

    def _parse(self, line: bytes) -> Reply | None:
        """The reply that the line completes.

        Raises:
            ValueError: it is not the line of a reply.
        """
        words = [word for word in line.split(b" ") if word]
        first = words[0] if words else b""
        if first == b"VALUE":
            self._parse_value(words)
            return None
        if first == b"END" and len(words) == 1:
            return Stats(tuple(self._lines)) if self._lines else Values(tuple(self._items))
        if first == b"STAT" and len(words) > 1:
            value = line.split(b" ", 2)[2] if len(words) > 2 else b""
            self._grow(len(line))
            self._lines.append((words[1], value))
            return None
        if first == b"VA":
            flags = parse_response_flags(words, 2)
            self._expect_value(int(words[1]), lambda value: Meta("VA", flags, value))
            return None
        if first in _META_CODES:
            return Meta(cast("MetaCode", first.decode()), parse_response_flags(words, 1))
        return _parse_short(line, words)

    def _parse_value(self, words: list[bytes]) -> None:
        _, key, flags, length, *rest = words
        cas = int(rest.pop()) if rest else None
        if rest:
            raise ValueError("too many words")
        number = int(flags)

        def complete(value: bytes) -> None:
            self._grow(len(value))
            self._items.append(Value(key, value, number, cas))

        self._expect_value(int(length), complete)

    def _grow(self, size: int) -> None:
        self._check_size(size + _OVERHEAD)
        self._size += size + _OVERHEAD

    # -- sending --

    def send(self, message: Request) -> list[Buffer]:
        """Encode a command.

        Raises:
            LocalProtocolError: a key or a token is not one word, or there is no key.
        """
        if self._quit:
            raise LocalProtocolError("this connection has been told to quit")
        if isinstance(message, Store):
            return _encode_store(message)
        if isinstance(message, MetaSet):
            key = encode_key(message.key, binary="b" in message.flags)
            size = size_of(message.value)
            line = b"ms %b %d%b\r\n" % (key, size, encode_flags(message.flags))
            return [line, message.value, b"\r\n"]
        if isinstance(message, MetaGet | MetaDelete | MetaCount):
            key = encode_key(message.key, binary="b" in message.flags)
            return [b"%b %b%b\r\n" % (_META_VERBS[type(message)], key, encode_flags(message.flags))]
        self._quit = isinstance(message, Quit)
        return [_encode_line(message)]


def _encode_store(message: Store) -> list[Buffer]:
    check_key(message.key)
    line = b"%b %b %d %d %d%b%b\r\n" % (
        message.verb.encode(),
        message.key,
        message.flags,
        message.exptime,
        size_of(message.value),
        b" %d" % message.cas if message.verb == "cas" else b"",
        _noreply(message.noreply),
    )
    return [line, message.value, b"\r\n"]


def _encode_line(
    message: Get | Delete | Count | Touch | FlushAll | Command | Quit | MetaNoop | MetaDebug,
) -> bytes:
    if isinstance(message, Get):
        if not message.keys:
            raise LocalProtocolError("a retrieval has at least one key")
        for key in message.keys:
            check_key(key)
        verb = b"get" if message.exptime is None else b"gat"
        exptime = b"" if message.exptime is None else b" %d" % message.exptime
        plural = b"s" if message.cas else b""
        return b"%b%b%b %b\r\n" % (verb, plural, exptime, b" ".join(message.keys))
    if isinstance(message, Quit):
        return b"quit\r\n"
    if isinstance(message, MetaNoop):
        return b"mn\r\n"
    if isinstance(message, MetaDebug):
        key = encode_key(message.key, binary=message.binary)
        return b"me %b%b\r\n" % (key, b" b" if message.binary else b"")
    if isinstance(message, Command):
        if not message.words or not all(_WORD.match(word) for word in message.words):
            raise LocalProtocolError("a command is one or more words without spaces and line ends")
        return b" ".join(message.words) + b"\r\n"
    noreply = _noreply(message.noreply)
    if isinstance(message, FlushAll):
        return b"flush_all %d%b\r\n" % (message.delay, noreply)
    check_key(message.key)
    if isinstance(message, Delete):
        return b"delete %b%b\r\n" % (message.key, noreply)
    if isinstance(message, Touch):
        return b"touch %b %d%b\r\n" % (message.key, message.exptime, noreply)
    verb = b"decr" if message.down else b"incr"
    return b"%b %b %d%b\r\n" % (verb, message.key, message.delta, noreply)


def _noreply(noreply: bool) -> bytes:
    return b" noreply" if noreply else b""


def _parse_short(line: bytes, words: list[bytes]) -> Reply:
    """A reply of one line that is not a meta command's, but for ``me``.

    Raises:
        ValueError: it is not the line of a reply.
    """
    if _NUMBER.match(line):
        return Number(int(line))
    first = words[0] if words else b""
    text = line[len(first) :].strip(b" ").decode()
    if first in {b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"}:
        return Error(cast("Literal['ERROR', 'CLIENT_ERROR', 'SERVER_ERROR']", first.decode()), text)
    if first == b"VERSION":
        return Version(text)
    if first == b"ME" and len(words) > 1:
        pairs = [word.decode().partition("=") for word in words[2:]]
        return Debug(words[1], tuple((name, value) for name, _, value in pairs))
    if _STATUS.match(line) is None:
        raise ValueError("this is not the line of a reply")
    return Status(line.decode())


def _bad_line(line: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(f"the server's line is not that of a reply: {line[:100]!r}")
