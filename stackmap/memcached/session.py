"""One client's conversation with the store."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

from .codec import BAD_FORMAT, ERROR, MAX_KEY, Decoder, parse_signed, parse_unsigned
from .store import NOT_FOUND, item_fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackmap._port import Buffer

    from .store import Item, Store

#: What this server says it is compatible with; some clients read the number.
VERSION = b"1.6.18-stackmap"

#: A client's commands are put off once they have produced this many bytes of values, until it
#: has taken them.
OUTPUT_LIMIT = 256 << 10

#: Bounds of cache_memlimit's argument.
_LEAST_MEMORY = 8
_MOST_MEMORY = 1_000_000_000

_END = b"END\r\n"
_VALUE_END = b"\r\nEND\r\n"
_OK = b"OK\r\n"
_BAD_EXPTIME = b"CLIENT_ERROR invalid exptime argument\r\n"
_BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument\r\n"
_NOT_A_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
_BAD_DELETE = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
_TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"


class Statistics(Protocol):
    """Whoever answers ``stats``."""

    def report(self, words: list[bytes]) -> bytes | None:
        """The whole reply to ``stats WORDS``; None if there is no such report."""

    def reset(self) -> None:
        """Set the counters back to 0."""


class Session(Decoder):
    """Executes one client's commands.

    Attributes:
        at_end: free for the owner: the client will send nothing more.

    Feed segments to :meth:`respond`, and send what it returns.  When ``paused`` is set, send that
    first, then call :meth:`resume` and collect what is to be sent with :meth:`take_output`.
    """

    __slots__ = (
        "_keys",
        "_look_up",
        "_out",
        "_statistics",
        "_store",
        "_value_bytes",
        "_with_cas",
        "at_end",
    )

    def __init__(self, store: Store, statistics: Statistics) -> None:
        super().__init__()
        self.at_end = False
        self._store = store
        self._statistics = statistics
        self._out: list[bytes | bytearray] = []
        self._value_bytes = 0
        #: The keys of a retrieval that was put off, last one first, and its kind.
        self._keys: list[bytes] = []
        self._look_up: Callable[[bytes], Item | None] = store.get
        self._with_cas = False

    def take_output(self) -> bytes | bytearray:
        """Everything to be sent to the client, in one buffer that is the caller's."""
        out = self._out
        if not out:
            return b""
        output = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._value_bytes = 0
        return output

    def respond(self, view: Buffer) -> bytes | bytearray:
        """Take a segment and return everything to be sent: receive() and take_output() in one.

        The commonest segment by far, one retrieval of one key, takes a short cut.
        """
        if self._idle:
            data = bytes(view)
            if data.startswith(b"get ") and data.endswith(b"\r\n"):
                key = data[4:-2]
                if b" " not in key and b"\n" not in key and 0 < len(key) <= MAX_KEY:
                    item = self._store.get(key)
                    if item is None:
                        return _END
                    return b"".join((b"VALUE ", key, item.header, item.value, _VALUE_END))
            self._parse(data)
        else:
            self.receive(view)
        return self.take_output()

    def resume(self) -> None:
        """Go on with what was put off while ``paused`` was set."""
        self.paused = False
        if self._keys:
            self._retrieve_many()
        if not self._keys and not self.paused:
            super().resume()

    # -- what the decoder found --

    def error(self, reply: bytes) -> None:
        """Answer a malformed command."""
        self._out.append(reply)

    def accepts(self, verb: bytes, key: bytes, flags: int, length: int, *, noreply: bool) -> bool:
        """Refuse what memcached would not store in an item of 1 MiB."""
        if item_fits(key, flags, length):
            return True
        self._store.counters.store_too_large += 1
        if verb == b"set":
            # The old value would be stale.
            self._store.discard(key)
        if not noreply:
            self._out.append(_TOO_LARGE)
        return False

    def storage(  # noqa: PLR0917 (called by position, once per request)
        self,
        verb: bytes,
        key: bytes,
        flags: int,
        exptime: int,
        cas: int,
        noreply: bool,
        value: bytes | bytearray,
    ) -> None:
        """Execute a storage command."""
        store = self._store
        if verb == b"set":
            reply = store.set(key, flags, exptime, value)
        elif verb == b"cas":
            reply = store.compare_and_set(key, flags, exptime, cas, value)
        elif verb == b"add":
            reply = store.add(key, flags, exptime, value)
        elif verb == b"replace":
            reply = store.replace(key, flags, exptime, value)
        elif verb == b"append":
            reply = store.append(key, value)
        else:
            reply = store.prepend(key, value)
        if not noreply:
            self._out.append(reply)

    def command(self, words: list[bytes]) -> None:
        """Execute a command without a value."""
        verb = words[0]
        if verb == b"get" and len(words) == 2:
            key = words[1]
            item = self._store.get(key)
            if item is not None:
                self._out += (b"VALUE ", key, item.header, item.value, _VALUE_END)
                self._count(item)
            else:
                self._out.append(_END if len(key) <= MAX_KEY else BAD_FORMAT)
            return
        known = _COMMANDS.get(verb)
        if known is None:
            if words[-1].startswith(b"HTTP/") and verb[:1] not in _OWN_BRANCH:
                self.hang_up = True
            else:
                self._out.append(ERROR)
            return
        execute, least, most = known
        if not least <= len(words) <= most:
            self._out.append(ERROR)
            return
        reply = execute(self, words)
        if reply and words[-1] != b"noreply":
            self._out.append(reply)

    # -- retrieval --

    def _count(self, item: Item) -> None:
        """Put off what follows if this value made the output large."""
        self._value_bytes += len(item.value)
        if self._value_bytes > OUTPUT_LIMIT:
            self.paused = True

    def _get(self, words: list[bytes]) -> None:
        self._with_cas = words[0] == b"gets"
        if len(max(words, key=len)) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return
        self._keys = words[:0:-1]
        self._look_up = self._store.get
        self._retrieve_many()

    def _retrieve_many(self) -> None:
        """Answer as many of the keys as the output limit allows."""
        look_up = self._look_up
        keys = self._keys
        while keys:
            key = keys.pop()
            item = look_up(key)
            if item is not None:
                self._answer(key, item)
                if self.paused and keys:
                    return
        self._out.append(_END)

    def _answer(self, key: bytes, item: Item) -> None:
        header = item.header
        if self._with_cas:
            header = b"%b %d\r\n" % (header[:-2], item.cas)
        self._out += (b"VALUE ", key, header, item.value, b"\r\n")
        self._count(item)

    def _get_and_touch(self, words: list[bytes]) -> None:
        self._with_cas = words[0] == b"gats"
        exptime = parse_signed(words[1])
        if exptime is None:
            self._out.append(_BAD_EXPTIME)
            return
        if len(max(words[2:], key=len, default=b"")) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return
        self._keys = words[:1:-1]
        self._look_up = functools.partial(self._store.touch, exptime=exptime)
        self._retrieve_many()

    # -- the other commands; each returns its reply --

    def _delete(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(words) > 2:
            extra = words[2:]
            if extra not in ([b"0"], [b"noreply"], [b"0", b"noreply"]):
                return _BAD_DELETE
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        return b"DELETED\r\n" if self._store.delete(key) else NOT_FOUND

    def _count_up_or_down(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        delta = parse_unsigned(words[2])
        if delta is None:
            return _BAD_DELTA
        try:
            number = self._store.count(key, delta, down=words[0] == b"decr")
        except ValueError:
            return _NOT_A_NUMBER
        return NOT_FOUND if number is None else b"%d\r\n" % number

    def _touch(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        exptime = parse_signed(words[2])
        if exptime is None:
            return _BAD_EXPTIME
        return NOT_FOUND if self._store.touch(key, exptime) is None else b"TOUCHED\r\n"

    def _flush_all(self, words: list[bytes]) -> bytes:
        delay: int | None = 0
        if len(words) > 1 and words[1:] != [b"noreply"]:
            delay = parse_signed(words[1])
        if delay is None:
            return _BAD_EXPTIME
        self._store.flush(delay)
        return _OK

    def _cache_memlimit(self, words: list[bytes]) -> bytes:
        megabytes = parse_unsigned(words[1])
        if megabytes is None:
            return ERROR
        if megabytes < _LEAST_MEMORY:
            return b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
        if megabytes > _MOST_MEMORY:
            return b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"
        self._store.set_limit(megabytes << 20)
        return _OK

    def _version(self, _words: list[bytes]) -> bytes:
        # Like quit and stats, memcached's version ignores "noreply".
        self._out.append(b"VERSION %b\r\n" % VERSION)
        return b""

    def _verbosity(self, words: list[bytes]) -> bytes:
        return BAD_FORMAT if parse_unsigned(words[1]) is None else _OK

    def _stats(self, words: list[bytes]) -> bytes:
        if words[1:2] == [b"reset"]:
            self._statistics.reset()
            self._out.append(b"RESET\r\n")
        else:
            self._out.append(self._statistics.report(words[1:]) or ERROR)
        return b""

    def _quit(self, _words: list[bytes]) -> bytes:
        self.hang_up = True
        return b""

    def _shutdown(self, _words: list[bytes]) -> bytes:
        return b"ERROR: shutdown not enabled\r\n"


_ANY = 1 << 30
#: Commands, what executes them, and how few and how many words they take.
_COMMANDS: dict[bytes, tuple[Callable[[Session, list[bytes]], bytes | None], int, int]] = {
    b"get": (Session._get, 2, _ANY),
    b"gets": (Session._get, 2, _ANY),
    b"gat": (Session._get_and_touch, 2, _ANY),
    b"gats": (Session._get_and_touch, 2, _ANY),
    b"delete": (Session._delete, 2, 4),
    b"incr": (Session._count_up_or_down, 3, 4),
    b"decr": (Session._count_up_or_down, 3, 4),
    b"touch": (Session._touch, 3, 4),
    b"flush_all": (Session._flush_all, 1, 3),
    b"cache_memlimit": (Session._cache_memlimit, 2, 3),
    b"version": (Session._version, 1, _ANY),
    b"verbosity": (Session._verbosity, 2, 3),
    b"stats": (Session._stats, 1, _ANY),
    b"quit": (Session._quit, 1, _ANY),
    b"shutdown": (Session._shutdown, 1, 2),
}
#: Unknown commands beginning with these are answered even if they look like HTTP.
_OWN_BRANCH = frozenset((b"g", b"s", b"a", b"c", b"i", b"d", b"t"))
