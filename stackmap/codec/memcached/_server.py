"""The server's end: requests in, replies out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, cast

from stackmap.codec._buffered import Buffered
from stackmap.codec._codec import size_of
from stackmap.codec._errors import LocalProtocolError, RemoteProtocolError

from ._messages import (
    Command,
    Count,
    Debug,
    Delete,
    Encoded,
    Error,
    FlushAll,
    Get,
    Invalid,
    Meta,
    MetaCount,
    MetaDebug,
    MetaDelete,
    MetaGet,
    MetaNoop,
    MetaSet,
    NoReply,
    Number,
    Quit,
    Reply,
    Request,
    Stats,
    Status,
    Store,
    StoreVerb,
    Touch,
    Value,
    Values,
    Version,
)
from .flags import (
    MAX_WORDS,
    FlagError,
    check_key,
    check_set,
    decode_key,
    encode_flags,
    parse_flags,
)
from .text import (
    BAD_CHUNK,
    BAD_DELETE,
    BAD_DELTA,
    BAD_EXPTIME,
    BAD_FORMAT,
    BINARY,
    BINARY_HEADER,
    ERROR,
    MAX_KEY,
    MAX_LENGTH,
    STORAGE,
    TOO_LARGE,
    parse_client_flags,
    parse_signed,
    parse_unsigned,
    refuse_binary,
)

if TYPE_CHECKING:
    from stackmap.codec._codec import Buffer


_TOO_MANY_GET_FLAGS = b"CLIENT_ERROR options flags are too long\r\n"
_TOO_MANY_FLAGS = b"CLIENT_ERROR options flags too long\r\n"
_BAD_FLAGS = b"CLIENT_ERROR invalid or duplicate flag\r\n"
_LINE_TOO_LONG = b"CLIENT_ERROR line is too long\r\n"
#: What the text of a reply may not contain.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Header(NamedTuple):
    """The line of a command whose value follows: the command without it, and its length."""

    command: Store | MetaSet
    length: int


class _Refusal(Exception):  # noqa: N818 (it never leaves this module)
    """The command is to be answered with ``reply``, or with nothing if that is empty.

    ``command`` is the one, if its value is why: because it is too large, or ends elsewhere.
    """

    def __init__(
        self, reply: bytes, command: Store | MetaSet | None = None, *, too_large: bool = False
    ) -> None:
        super().__init__(reply)
        self.reply = b"" if isinstance(command, Store) and command.noreply else reply
        self.command = command
        self.too_large = too_large


class ServerCodec(Buffered[Request | Invalid, Reply]):
    """Receives the commands of a client, classic and meta ones, and sends replies.

    A command that memcached would answer with an error is an :class:`Invalid`; send its ``error``.
    ``quit`` is not reported: it ends the codec (:attr:`must_close`).  A value that is too large is
    refused and skipped.

    Args:
        max_value: how many bytes a value may have.
        max_line: how many bytes a line may have: about 250 for each key of a retrieval.
        later: accept flags that memcached 1.6.18 does not know.

    Raises:
        ValueError: a bound is not positive.
    """

    __slots__ = ("_fresh", "_header", "_later", "_max_line", "_max_value", "_quit", "_searched",
                 "_skip")  # fmt: skip

    def __init__(
        self, *, max_value: int = 1 << 20, max_line: int = 64 << 10, later: bool = True
    ) -> None:
        if max_value <= 0 or max_line <= 0:
            raise ValueError("max_value and max_line are numbers of bytes above 0")
        super().__init__()
        self._max_value = max_value
        self._max_line = max_line
        self._later = later
        #: No line was seen yet.
        self._fresh = True
        #: How much of the data is known to have no line end.
        self._searched = 0
        #: The command whose value is being received, and bytes of a refused value still to come.
        self._header: _Header | None = None
        self._skip = 0
        self._quit = False

    @property
    def must_close(self) -> bool:
        """Whether the client said ``quit``."""
        return self._quit

    def _unfinished(self) -> bool:
        return bool(self._data or self._header is not None or self._skip)

    # -- receiving --

    def _cut(self) -> Request | Invalid | None:
        while True:
            try:
                if self._skip:
                    size = min(self._skip, len(self._data))
                    del self._data[:size]
                    self._skip -= size
                    if self._skip:
                        return None
                if self._header is not None:
                    return self._cut_value(self._header)
                line = self._cut_line()
                if line is None:
                    return None
                message = self._parse(line)
            except _Refusal as refusal:
                if refusal.reply or refusal.command is not None:
                    error = Error.parse(refusal.reply) if refusal.reply else NoReply()
                    return Invalid(error, refusal.command, refusal.too_large)
                continue
            if isinstance(message, _Header):
                self._header = message
            elif isinstance(message, Quit):
                self._quit = True
                self._data = bytearray()
                return None
            else:
                return message

    def receive(self, data: Buffer) -> None:
        """Take what the client sent."""
        if not self._quit:
            super().receive(data)

    def _cut_line(self) -> bytes | None:
        data = self._data
        if self._fresh and not self._begins_with_text():
            return None
        end = data.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(data)
        if max(end, self._searched) > self._max_line:
            raise RemoteProtocolError(
                f"the client's line has more than {self._max_line} bytes", [_LINE_TOO_LONG]
            )
        if end < 0:
            return None
        line = bytes(data[: end - 1 if data.endswith(b"\r", 0, end) else end])
        del data[: end + 1]
        self._searched = 0
        return line

    def _begins_with_text(self) -> bool:
        """Tell the binary protocol, which is not spoken here, by its first byte."""
        data = self._data
        if data.startswith(BINARY):
            if len(data) < BINARY_HEADER:
                return False
            raise RemoteProtocolError(
                "the client speaks the binary protocol, not the text one",
                [refuse_binary(bytes(data[:BINARY_HEADER]))],
            )
        self._fresh = not data
        return True

    def _cut_value(self, header: _Header) -> Request | None:
        data = self._data
        command, length = header
        if len(data) < length + 2:
            return None
        self._header = None
        good = data.startswith(b"\r\n", length)
        with memoryview(data) as view:
            value = bytes(view[:length])
        del data[: length + 2]
        if not good:
            raise _Refusal(BAD_CHUNK, command)
        if isinstance(command, MetaSet):
            return MetaSet(command.key, value, command.flags)
        return Store(
            command.verb, command.key, value, command.flags, command.exptime, command.cas,
            command.noreply,
        )  # fmt: skip

    def _parse(self, line: bytes) -> Request | _Header:
        words = [word for word in line.split(b" ") if word]
        if not words:
            raise _Refusal(ERROR)
        verb = words[0]
        count = len(words)
        if verb in STORAGE:
            return self._parse_storage(words)
        if verb in _META_VERBS:
            return self._parse_meta(words)
        if verb in {b"get", b"gets"}:
            return Get(_keys(words, 1), verb == b"gets")
        if verb in {b"gat", b"gats"}:
            exptime = parse_signed(words[1]) if count > 2 else 0
            if exptime is None:
                raise _Refusal(BAD_EXPTIME)
            return Get(_keys(words, 2), verb == b"gats", exptime)
        if verb == b"quit":
            return Quit()
        if words[-1].startswith(b"HTTP/") and verb not in _KNOWN and verb[:1] not in _OWN_BRANCH:
            raise RemoteProtocolError("the client speaks HTTP, not memcached's protocol")
        least, most = _CLASSIC.get(verb, (1, count))
        if not least <= count <= most:
            raise _Refusal(ERROR)
        noreply = count > 1 and words[-1] == b"noreply"
        try:
            return _parse_classic(verb, words, noreply=noreply)
        except _Refusal:
            if noreply:
                raise _Refusal(b"") from None
            raise

    def _parse_storage(self, words: list[bytes]) -> _Header:
        verb = words[0]
        needed = STORAGE[verb]
        if not needed <= len(words) <= needed + 1:
            raise _Refusal(ERROR)
        noreply = len(words) > needed and words[-1] == b"noreply"
        flags = parse_client_flags(words[2])
        exptime = parse_signed(words[3])
        length = parse_signed(words[4])
        cas = parse_unsigned(words[5]) if needed > 5 else 0
        if (
            len(words[1]) > MAX_KEY
            or flags is None
            or exptime is None
            or cas is None
            or length is None
            or not 0 <= length <= MAX_LENGTH
        ):
            raise _Refusal(b"" if noreply else BAD_FORMAT)
        name = cast("StoreVerb", verb.decode())
        command = Store(name, words[1], b"", flags, exptime, cas, noreply)
        if length > self._max_value:
            self._skip = length + 2
            raise _Refusal(TOO_LARGE, command, too_large=True)
        return _Header(command, length)

    def _parse_meta(self, words: list[bytes]) -> Request | _Header:
        verb = words[0]
        if verb == b"mn":
            return MetaNoop()
        if len(words) < 2 and verb != b"me":
            raise _Refusal(ERROR)
        if len(words) < (3 if verb == b"ms" else 2) or len(words[1]) > MAX_KEY:
            raise _Refusal(BAD_FORMAT)
        if verb == b"me":
            binary = len(words) > 2 and words[2] == b"b"
            key = decode_key(words[1]) if binary else words[1]
            if key is None:
                raise _Refusal(BAD_FORMAT)
            return MetaDebug(key, binary)
        if len(words) > MAX_WORDS:
            raise _Refusal(_TOO_MANY_GET_FLAGS if verb == b"mg" else _TOO_MANY_FLAGS)
        if verb == b"ms":
            return self._parse_meta_set(words)
        try:
            key, flags = parse_flags(words, 2, later=self._later)
        except FlagError as error:
            raise _Refusal(error.reply if verb == b"mg" else _BAD_FLAGS) from error
        return _META[verb](key, flags)

    def _parse_meta_set(self, words: list[bytes]) -> _Header:
        length = parse_signed(words[2])
        if length is None or not 0 <= length <= MAX_LENGTH:
            raise _Refusal(BAD_FORMAT)
        try:
            key, flags = parse_flags(words, 3, later=self._later)
            check_set(flags)
        except FlagError as error:
            self._skip = length + 2
            raise _Refusal(error.reply) from error
        command = MetaSet(key, b"", flags)
        if length > self._max_value:
            self._skip = length + 2
            raise _Refusal(TOO_LARGE, command, too_large=True)
        return _Header(command, length)

    # -- sending --

    def send(self, message: Reply) -> list[Buffer]:
        """Encode a reply.

        Raises:
            LocalProtocolError: a text has a line end, or a value is missing or too much.
        """
        if isinstance(message, Values):
            buffers: list[Buffer] = []
            for item in message.items:
                buffers += _encode_value(item)
            buffers.append(b"END\r\n")
            return buffers
        if isinstance(message, Meta):
            return _encode_meta(message)
        if isinstance(message, NoReply):
            return []
        if isinstance(message, Encoded):
            return [message.data]
        return [_encode_line(message)]


_META: dict[bytes, type[MetaGet | MetaDelete | MetaCount]] = {
    b"mg": MetaGet,
    b"md": MetaDelete,
    b"ma": MetaCount,
}
_META_VERBS = frozenset((*_META, b"ms", b"mn", b"me"))
#: Classic commands with a class of their own, and how few and how many words they have.
_CLASSIC = {
    b"delete": (2, 4),
    b"incr": (3, 4),
    b"decr": (3, 4),
    b"touch": (3, 4),
    b"flush_all": (1, 3),
}
#: memcached hangs up on unknown commands that look like HTTP, but for those beginning with these.
_KNOWN = frozenset((*_CLASSIC, b"version", b"verbosity"))
_OWN_BRANCH = frozenset((b"g", b"s", b"a", b"c", b"i", b"d", b"t"))


def _keys(words: list[bytes], start: int) -> tuple[bytes, ...]:
    keys = tuple(words[start:])
    if not keys:
        raise _Refusal(ERROR)
    if len(max(keys, key=len)) > MAX_KEY:
        raise _Refusal(BAD_FORMAT)
    return keys


def _parse_classic(verb: bytes, words: list[bytes], *, noreply: bool) -> Request:
    if verb not in _CLASSIC:
        return Command(tuple(words))
    if verb == b"flush_all":
        delay = parse_signed(words[1]) if len(words) > 1 + noreply else 0
        if delay is None:
            raise _Refusal(BAD_EXPTIME)
        return FlushAll(delay, noreply)
    key = words[1]
    if verb == b"delete" and words[2:] not in ([], [b"0"], [b"noreply"], [b"0", b"noreply"]):
        raise _Refusal(BAD_DELETE)
    if len(key) > MAX_KEY:
        raise _Refusal(BAD_FORMAT)
    if verb == b"delete":
        return Delete(key, noreply)
    if verb == b"touch":
        exptime = parse_signed(words[2])
        if exptime is None:
            raise _Refusal(BAD_EXPTIME)
        return Touch(key, exptime, noreply)
    delta = parse_unsigned(words[2])
    if delta is None:
        raise _Refusal(BAD_DELTA)
    return Count(key, delta, verb == b"decr", noreply)


def _encode_value(item: Value) -> list[Buffer]:
    cas = b"" if item.cas is None else b" %d" % item.cas
    check_key(item.key, echo=True)
    header = b"VALUE %b %d %d%b\r\n" % (item.key, item.flags, size_of(item.value), cas)
    return [header, item.value, b"\r\n"]


def _encode_meta(message: Meta) -> list[Buffer]:
    flags = encode_flags(message.flags, echo=True)
    if message.code != "VA":
        if message.value is not None:
            raise LocalProtocolError(f"a reply {message.code} has no value")
        return [b"%b%b\r\n" % (message.code.encode(), flags)]
    if message.value is None:
        raise LocalProtocolError("a reply VA has a value")
    return [b"VA %d%b\r\n" % (size_of(message.value), flags), message.value, b"\r\n"]


def _encode_line(
    message: Status | Number | Version | Stats | Error | Debug,
) -> bytes:
    if isinstance(message, Number):
        return b"%d\r\n" % message.value
    if isinstance(message, Status):
        return _text(message.word) + b"\r\n"
    if isinstance(message, Version):
        return b"VERSION %b\r\n" % _text(message.text)
    if isinstance(message, Error):
        return _text(f"{message.kind} {message.text}".rstrip()) + b"\r\n"
    if isinstance(message, Debug):
        check_key(message.key, echo=True)
        words = [_text(f" {name}={value}") for name, value in message.attributes]
        return b"ME %b%b\r\n" % (message.key, b"".join(words))
    lines = [b"STAT %b %b\r\n" % line for line in message.lines]
    return b"".join((*lines, b"END\r\n"))


def _text(text: str) -> bytes:
    if _CONTROL.search(text):
        raise LocalProtocolError(f"the text of a reply has a control character: {text!r}")
    return text.encode()
