"""Commands executed on the store, one message in, one message out.

It is for servers that are composed of parts: a codec of :mod:`stackmap.codec.memcached` makes the
requests, and encodes the replies.  What commands do is in :mod:`.store`, :mod:`.meta` and
:mod:`.administration`, which the bare loop's :class:`Session` calls as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from stackmap.codec.memcached import (
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
    MetaCode,
    MetaCount,
    MetaDebug,
    MetaDelete,
    MetaGet,
    MetaNoop,
    MetaSet,
    NoReply,
    Number,
    Reply,
    Request,
    Status,
    Touch,
    Value,
    Values,
    Version,
)
from stackmap.codec.memcached import Store as StoreCommand
from stackmap.codec.memcached.flags import FlagError, parse_response_flags
from stackmap.codec.memcached.text import TOO_LARGE

from . import meta
from .administration import ADMINISTRATION, VERSION
from .store import EXISTS, NO_MEMORY, NOT_FOUND, NOT_STORED, STORED, Store, item_fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Statistics

#: Bytes of values that one reply has at most: the default bound of the codec at the client's end.
#: A line has room for so many keys that their values would otherwise take all memory.
MAX_REPLY = 16 << 20

_NO_REPLY = NoReply()
_OK = Status("OK")
_NOT_FOUND = Status("NOT_FOUND")
_OUTCOMES: dict[bytes, Status | Error] = {
    STORED: Status("STORED"),
    NOT_STORED: Status("NOT_STORED"),
    EXISTS: Status("EXISTS"),
    NOT_FOUND: _NOT_FOUND,
    NO_MEMORY: Error.parse(NO_MEMORY),
}
_ERROR = Error("ERROR")
_TOO_LARGE = Error.parse(TOO_LARGE)
_NOT_A_NUMBER = Error.parse(meta.NOT_A_NUMBER)
_REPLY_TOO_LARGE = Error("SERVER_ERROR", "out of memory writing get response")
_META_CODES = frozenset((b"HD", b"VA", b"EN", b"NF", b"NS", b"EX"))
#: Words of a reply to ``me``.
_DEBUG_WORDS = 8


class Executor:
    """Executes the requests of all connections, each at once.

    Args:
        store: the items.
        statistics: answers ``stats``.
    """

    def __init__(self, store: Store, statistics: Statistics) -> None:
        self._store = store
        self._statistics = statistics
        self._execute: dict[type, Callable[[Any], Reply]] = {
            Get: self._get,
            StoreCommand: self._put,
            Delete: self._delete,
            Count: self._count,
            Touch: self._touch,
            FlushAll: self._flush_all,
            Command: self._command,
            Invalid: self._invalid,
            MetaGet: self._meta_get,
            MetaSet: self._meta_set,
            MetaDelete: self._meta_change,
            MetaCount: self._meta_change,
            MetaNoop: lambda _request: Meta("MN"),
            MetaDebug: self._meta_debug,
        }

    def execute(self, request: Request | Invalid) -> Reply:
        """Execute a request; the reply is :class:`NoReply` if the client wants none.

        Raises:
            KeyError: it is a :class:`Quit`, which the codec of a server does not report.
        """
        self._store.tick()
        return self._execute[type(request)](request)

    def _invalid(self, request: Invalid) -> Reply:
        command = request.refused
        if command is not None:
            if request.too_large:
                self._store.refuse(_verb(command), command.key)
            else:
                # As memcached, which begins to store before it has the value.
                self._store.counters.cmd_set += 1
        return request.error

    # -- classic commands --

    def _get(self, request: Get) -> Values | Error:
        store = self._store
        exptime = request.exptime
        items: list[Value] = []
        size = 0
        for key in request.keys:
            item = store.get(key) if exptime is None else store.get_and_touch(key, exptime)
            if item is not None:
                size += len(item.value)
                if size > MAX_REPLY:
                    return _REPLY_TOO_LARGE
                cas = item.cas if request.cas else None
                items.append(Value(key, item.value, item.flags, cas))
        return Values(tuple(items))

    def _put(self, request: StoreCommand) -> Reply:
        store = self._store
        verb, key, flags, exptime = request.verb, request.key, request.flags, request.exptime
        value = bytes(request.value)
        if not item_fits(key, flags, len(value)):
            store.refuse(verb.encode(), key)
            return _NO_REPLY if request.noreply else _TOO_LARGE
        if store.prefixes.on:
            store.prefixes.set(key)
        if verb == "set":
            outcome = store.set(key, flags, exptime, value)
        elif verb == "cas":
            outcome = store.compare_and_set(key, flags, exptime, request.cas, value)
        elif verb == "add":
            outcome = store.add(key, flags, exptime, value)
        elif verb == "replace":
            outcome = store.replace(key, flags, exptime, value)
        elif verb == "append":
            outcome = store.append(key, value)
        else:
            outcome = store.prepend(key, value)
        return _NO_REPLY if request.noreply else _OUTCOMES[outcome]

    def _delete(self, request: Delete) -> Reply:
        deleted = self._store.delete(request.key)
        return _NO_REPLY if request.noreply else Status("DELETED") if deleted else _NOT_FOUND

    def _count(self, request: Count) -> Reply:
        reply: Reply
        try:
            number = self._store.count(request.key, request.delta, down=request.down)
            reply = _NOT_FOUND if number is None else Number(number)
        except ValueError:
            reply = _NOT_A_NUMBER
        return _NO_REPLY if request.noreply else reply

    def _touch(self, request: Touch) -> Reply:
        item = self._store.touch(request.key, request.exptime)
        return _NO_REPLY if request.noreply else Status("TOUCHED") if item else _NOT_FOUND

    def _flush_all(self, request: FlushAll) -> Reply:
        self._store.flush(request.delay)
        return _NO_REPLY if request.noreply else _OK

    def _command(self, request: Command) -> Reply:
        words = list(request.words)
        verb = words[0]
        if verb == b"version":
            return Version(VERSION.decode())
        if verb == b"stats":
            return self._stats(words[1:])
        execute, least, most = ADMINISTRATION.get(verb, (None, 0, 0))
        if execute is None or not least <= len(words) <= most:
            return _ERROR
        line = execute(self._store, words)
        return _NO_REPLY if words[-1] == b"noreply" else _short_reply(line)

    def _stats(self, words: list[bytes]) -> Reply:
        if words[:1] == [b"reset"]:
            self._statistics.reset()
            return Status("RESET")
        report = self._statistics.report(words)
        if report is None:
            return _ERROR
        return Encoded(report if isinstance(report, bytes) else b"".join(report))

    # -- meta commands --

    def _meta_get(self, request: MetaGet) -> Reply:
        try:
            line, item = meta.get(self._store, request.key, request.flags)
        except FlagError as error:
            return Error.parse(error.reply)
        return _meta_reply(line, item.value if item is not None else None)

    def _meta_set(self, request: MetaSet) -> Reply:
        value = bytes(request.value)
        flags = request.flags
        client_flags = number if isinstance(number := flags.get("F"), int) else 0
        if not item_fits(request.key, client_flags, len(value)):
            self._store.refuse(b"ms", request.key)
            return _TOO_LARGE
        return _meta_reply(meta.set(self._store, request.key, flags, value), None)

    def _meta_change(self, request: MetaDelete | MetaCount) -> Reply:
        execute = meta.delete if isinstance(request, MetaDelete) else meta.count
        try:
            reply = execute(self._store, request.key, request.flags)
        except FlagError as error:
            return Error.parse(error.reply)
        line, _, value = reply.partition(b"\r\n")
        return _meta_reply(line, value[:-2] if value else None)

    def _meta_debug(self, request: MetaDebug) -> Reply:
        line = meta.debug(self._store, request.key)
        words = line.rstrip().split(b" ")
        if line == meta.MISS or len(words) != _DEBUG_WORDS:
            return Meta("EN") if line == meta.MISS else Encoded(line)
        pairs = (word.decode().partition("=") for word in words[2:])
        return Debug(words[1], tuple((name, value) for name, _, value in pairs))


def _verb(command: StoreCommand | MetaSet) -> bytes:
    return b"ms" if isinstance(command, MetaSet) else command.verb.encode()


def _short_reply(line: bytes) -> Reply:
    """The message of a reply of one line."""
    try:
        return Error.parse(line)
    except ValueError:
        return Status(line.decode().rstrip())


def _meta_reply(line: bytes, value: bytes | None) -> Reply:
    """The message of a reply to a meta command, whose first line and value are known."""
    line = line.removesuffix(b"\r\n")
    if not line:
        return _NO_REPLY
    code, *words = line.split(b" ")
    if code not in _META_CODES:
        return Error.parse(line)
    if code == b"VA":
        del words[0]
    try:
        flags = parse_response_flags(words, 0)
    except ValueError:
        # memcached writes some keys with spaces as they are, which no client can read either.
        return Encoded(line + b"\r\n" + (b"" if value is None else value + b"\r\n"))
    return Meta(cast("MetaCode", code.decode()), flags, value)
