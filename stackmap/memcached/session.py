"""One client's conversation with the store."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, ClassVar, Protocol

from stackmap.codec.memcached.flags import (
    MAX_WORDS,
    FlagError,
    check_set,
    decode_key,
    parse_flags,
)
from stackmap.codec.memcached.text import (
    BAD_CHUNK,
    BAD_DELETE,
    BAD_DELTA,
    BAD_EXPTIME,
    BAD_FORMAT,
    ERROR,
    MAX_KEY,
    TOO_LARGE,
    parse_signed,
    parse_unsigned,
    refuse_binary,
)

from . import meta
from .administration import ADMINISTRATION, OK, VERSION
from .codec import TURN, Decoder
from .store import NO_MEMORY, NOT_FOUND, item_fits
from .waiting import NO_ROOM_FOR_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap import Segment
    from stackmap.codec.memcached import Flags

    from .store import Item, Store

#: A turn ends once it has produced this many bytes of values, and larger values are sent in pieces
#: of this size, so a client that does not read has no more than that waiting in memory.
OUTPUT_LIMIT = 32 << 10
#: What ``stats`` costs, in commands, and what a list of the keys or connections that a long report
#: has yet to describe takes in memory.
_REPORT_WORK = 64
_REPORT_MEMORY = 128 << 10

#: Bytes of a retrieval of one key besides the key.
_AROUND_A_KEY = len(b"get \r\n")
_END = b"END\r\n"
_VALUE_END = b"\r\nEND\r\n"
_TOO_MANY_GET_FLAGS = b"CLIENT_ERROR options flags are too long\r\n"
_TOO_MANY_FLAGS = b"CLIENT_ERROR options flags too long\r\n"
_BAD_FLAGS = b"CLIENT_ERROR invalid or duplicate flag\r\n"

#: How many bytes of a long line are cut into keys at a time.
_STRETCH = 4096
_ANYTHING = re.compile(rb"[^ ]")
#: More words than any command has.
_ANY = 1 << 30


class Statistics(Protocol):
    """The source of answers to ``stats``."""

    def report(self, words: list[bytes]) -> bytes | Iterator[bytes] | None:
        """The reply to ``stats WORDS``, if it is long line by line.

        None if there is no such report.
        """

    def reset(self) -> None:
        """Set the counters back to 0."""


class Session(Decoder):
    """Executes one client's commands.

    Attributes:
        at_end: free for the owner: the client will send nothing more.
        heard: free for the owner: when the client last gave a sign of life.
        charged: bytes for which the owner has reserved room in the store (:class:`Waiting`).

    Feed segments to :meth:`respond`, and send what it returns.  When ``paused`` is set, send that
    first, then call :meth:`resume` and collect what is to be sent with :meth:`take_output`.
    """

    __slots__ = (
        "_after",
        "_end",
        "_item",
        "_keys",
        "_line",
        "_look_up",
        "_next",
        "_out",
        "_report",
        "_sent",
        "_statistics",
        "_store",
        "_value_bytes",
        "_with_cas",
        "at_end",
        "charged",
        "heard",
    )

    def __init__(self, store: Store, statistics: Statistics) -> None:
        super().__init__()
        self.at_end = False
        self.heard = store.now
        self.charged = 0
        self._store = store
        self._statistics = statistics
        self._out: list[bytes] = []
        self._value_bytes = 0
        #: The retrieval that was put off: its next keys, last one first, and where in its line the
        #: others begin and end.
        self._keys: list[bytes] = []
        self._line = b""
        self._next = self._end = 0
        self._look_up: Callable[[bytes], Item | None] = store.get
        self._with_cas = False
        #: The item whose value is being sent in pieces, how much of it was, and what follows it.
        self._item: Item | None = None
        self._sent = 0
        self._after = b""
        #: The lines that are left of a long report.
        self._report: Iterator[bytes] | None = None

    @property
    def held(self) -> int:
        """Bytes of input in memory, and what a report that was put off takes."""
        return super().held + (_REPORT_MEMORY if self._report is not None else 0)

    def take_output(self) -> bytes:
        """Everything to be sent to the client."""
        out = self._out
        if not out:
            return b""
        output = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._value_bytes = 0
        return output

    def respond(self, segment: Segment) -> bytes:
        """Take a segment and return everything to be sent: receive() and take_output() in one.

        The commonest segment by far, one retrieval of one key, takes a short cut.
        """
        if self.idle:
            data = segment.tobytes()
            key = data.removeprefix(b"get ").removesuffix(b"\r\n")
            if len(data) - len(key) == _AROUND_A_KEY:
                # A stored key was parsed as one, so its bytes need no check.
                item = self._store.hit(key)
                if item is not None:
                    if len(item.value) <= OUTPUT_LIMIT:
                        return b"".join((b"VALUE ", key, item.header, item.value, _VALUE_END))
                    self._answer(key, item.header, item, _VALUE_END)
                    self.idle = False
                    return self.take_output()
            self.work = TURN
            self._parse(data, 0)
        else:
            self.receive(segment.view)
        return self.take_output()

    def _proceed(self) -> None:
        """Finish the command that was put off, before those that follow it."""
        if self._item is not None:
            self._send_piece(self._item)
        if self._report is not None:
            self._report_more(self._report)
        if not self.paused and (self._keys or self._next < self._end):
            self._retrieve_many()
        if not self.paused:
            super()._proceed()

    def shed(self) -> bool:
        """Give up what waits here, because memory is short; True if the client can go on.

        It cannot if what waits is not a value that it sends; then it is to be disconnected.
        """
        verb, key, *_, noreply = self._header
        if self.drop_value():
            self._store.refuse_for_memory(verb, key)
            if not noreply:
                self._out.append(NO_MEMORY)
            return True
        self.refused = not self.paused
        self.drop()
        if self.refused:
            self._out.append(NO_ROOM_FOR_LINE)
        return False

    def drop(self) -> None:
        """Free everything; the client is to be disconnected."""
        super().drop()
        self._out.clear()
        self._keys = []
        self._line = b""
        self._next = self._end = 0
        self._report = None
        if self._item is not None:
            self._store.give_back(self._item)
            self._item = None

    # -- called by the decoder --

    def error(self, reply: bytes) -> None:
        """Answer a malformed command."""
        self._out.append(reply)

    def bad_chunk(self, *, noreply: bool) -> None:
        """Count a storage command all the same, as memcached does."""
        self._store.counters.cmd_set += 1
        if not noreply:
            self._out.append(BAD_CHUNK)

    def accepts(self, verb: bytes, key: bytes, flags: int, length: int, *, noreply: bool) -> bool:
        """Refuse what memcached would not store in an item of 1 MiB."""
        if item_fits(key, flags, length):
            return True
        self._store.refuse(verb, key)
        if not noreply:
            self._out.append(TOO_LARGE)
        return False

    def storage(  # noqa: PLR0917 (called by position, once per request)
        self,
        verb: bytes,
        key: bytes,
        flags: int,
        exptime: int,
        cas: int,
        noreply: bool,
        value: bytes,
    ) -> None:
        """Execute a storage command."""
        store = self._store
        if self.charged:
            # The value is the store's from here on.
            store.reserve(-self.charged)
            self.charged = 0
        if store.prefixes.on and verb != b"ms":
            store.prefixes.set(key)
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
        elif verb == b"prepend":
            reply = store.prepend(key, value)
        else:
            reply = meta.set(store, key, self._meta, value)
        if not noreply:
            self._out.append(reply)

    def check_meta_set(self, flags: Flags) -> None:
        """Look at the flags of ``ms``."""
        check_set(flags)

    def command(self, words: list[bytes]) -> None:
        """Execute a command without a value."""
        verb = words[0]
        if verb == b"get" and len(words) == 2:
            key = words[1]
            item = self._store.get(key)
            if item is not None:
                self._answer(key, item.header, item, _VALUE_END)
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

    def binary(self, header: bytes) -> None:
        """Say in the binary protocol that it is not spoken here."""
        self._out.append(refuse_binary(header))
        self.refused = True

    # -- retrieval --

    def retrieval(self, verb: bytes, data: bytes, start: int, end: int) -> None:
        """Execute a retrieval of so many keys that cutting its line would take much memory."""
        exptime: int | None = None
        if verb.startswith(b"gat"):
            start = _skip_spaces(data, start, end)
            space = data.find(b" ", start, end)
            word_end = space if space >= 0 else end
            exptime = parse_signed(data[start:word_end])
            if exptime is None:
                self._out.append(BAD_EXPTIME if start < end else ERROR)
                return
            start = word_end
        elif _skip_spaces(data, start, end) == end:
            self._out.append(ERROR)
            return
        if _has_long_key(data, start, end):
            self._out.append(BAD_FORMAT)
            return
        self._line, self._next, self._end = data, start, end
        self._retrieve(verb, exptime)

    def _get(self, words: list[bytes]) -> None:
        if len(max(words, key=len)) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return
        self._keys = words[:0:-1]
        self._retrieve(words[0], None)

    def _get_and_touch(self, words: list[bytes]) -> None:
        exptime = parse_signed(words[1])
        if exptime is None:
            self._out.append(BAD_EXPTIME)
            return
        if len(max(words[2:], key=len, default=b"")) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return
        self._keys = words[:1:-1]
        self._retrieve(words[0], exptime)

    def _retrieve(self, verb: bytes, exptime: int | None) -> None:
        self._with_cas = verb.endswith(b"s")
        if exptime is None:
            self._look_up = self._store.get
        else:
            self._look_up = functools.partial(self._store.get_and_touch, exptime=exptime)
        self._retrieve_many()

    def _retrieve_many(self) -> None:
        """Answer as many of the keys as this turn allows."""
        look_up = self._look_up
        while self._keys or self._cut_more():
            keys = self._keys
            while keys:
                if self.work <= 0:
                    self.paused = True
                if self.paused:
                    return
                self.work -= 1
                key = keys.pop()
                item = look_up(key)
                if item is not None:
                    header = item.header
                    if self._with_cas:
                        header = b"%b %d\r\n" % (header[:-2], item.cas)
                    self._answer(key, header, item, b"\r\n")
        if self.paused and self._item is not None:
            self._after += _END
        else:
            self._out.append(_END)

    def _cut_more(self) -> bool:
        """Cut the next keys from a long line; False if there are none."""
        while self._next < self._end:
            start = self._next
            stop = self._end
            if stop - start > _STRETCH:
                # No key is longer than the stretch, so there is a space in it.
                stop = self._line.rindex(b" ", start, start + _STRETCH) + 1
            self._next = stop
            self._keys = [key for key in self._line[start:stop].split(b" ") if key]
            if self._keys:
                self._keys.reverse()
                return True
        self._line = b""
        return False

    def _answer(self, key: bytes, header: bytes, item: Item, after: bytes) -> None:
        """Answer with an item, and end the turn if that makes the output large."""
        value = item.value
        if len(value) > OUTPUT_LIMIT:
            self._out += (b"VALUE ", key, header)
            self._send_in_pieces(item, after)
        else:
            self._out += (b"VALUE ", key, header, value, after)
            self._value_bytes += len(value)
            if self._value_bytes > OUTPUT_LIMIT:
                self.paused = True

    def _send_in_pieces(self, item: Item, after: bytes) -> None:
        """Send a large value, as much as a turn allows."""
        self._store.lend(item)
        self._item = item
        self._sent = 0
        self._after = after
        self._send_piece(item)

    def _send_piece(self, item: Item) -> None:
        """Send some more of a large value."""
        start = self._sent
        self._sent = start + OUTPUT_LIMIT
        self._out.append(item.value[start : self._sent])
        if self._sent < len(item.value):
            self.paused = True
            return
        self._out.append(self._after)
        self._item = None
        self._store.give_back(item)

    # -- the other commands; each returns its reply --

    def _delete(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(words) > 2:
            extra = words[2:]
            if extra not in ([b"0"], [b"noreply"], [b"0", b"noreply"]):
                return BAD_DELETE
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        return b"DELETED\r\n" if self._store.delete(key) else NOT_FOUND

    def _count_up_or_down(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        delta = parse_unsigned(words[2])
        if delta is None:
            return BAD_DELTA
        try:
            number = self._store.count(key, delta, down=words[0] == b"decr")
        except ValueError:
            return meta.NOT_A_NUMBER
        return NOT_FOUND if number is None else b"%d\r\n" % number

    def _touch(self, words: list[bytes]) -> bytes:
        key = words[1]
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        exptime = parse_signed(words[2])
        if exptime is None:
            return BAD_EXPTIME
        return NOT_FOUND if self._store.touch(key, exptime) is None else b"TOUCHED\r\n"

    # -- meta commands; each appends its reply itself, as none knows "noreply" --

    def _meta_get(self, words: list[bytes]) -> bytes:
        if len(words[1]) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return b""
        if len(words) > MAX_WORDS:
            self._out.append(_TOO_MANY_GET_FLAGS)
            return b""
        try:
            line, item = meta.get(self._store, *parse_flags(words, 2))
        except FlagError as error:
            self._out.append(error.reply)
            return b""
        self._out.append(line)
        if item is None:
            return b""
        if len(item.value) > OUTPUT_LIMIT:
            self._send_in_pieces(item, b"\r\n")
        else:
            self._out += (item.value, b"\r\n")
            self._value_bytes += len(item.value)
            if self._value_bytes > OUTPUT_LIMIT:
                self.paused = True
        return b""

    def _meta_change(self, words: list[bytes]) -> bytes:
        if len(words[1]) > MAX_KEY:
            self._out.append(BAD_FORMAT)
            return b""
        if len(words) > MAX_WORDS:
            self._out.append(_TOO_MANY_FLAGS)
            return b""
        try:
            key, flags = parse_flags(words, 2)
        except FlagError:
            self._out.append(_BAD_FLAGS)
            return b""
        execute = meta.delete if words[0] == b"md" else meta.count
        try:
            self._out.append(execute(self._store, key, flags))
        except FlagError as error:
            self._out.append(error.reply)
        return b""

    def _meta_noop(self, _words: list[bytes]) -> bytes:
        self._out.append(b"MN\r\n")
        return b""

    def _meta_debug(self, words: list[bytes]) -> bytes:
        key: bytes | None = words[1] if len(words) > 1 and len(words[1]) <= MAX_KEY else None
        if key is not None and words[2:3] == [b"b"]:
            key = decode_key(key)
        self._out.append(BAD_FORMAT if key is None else meta.debug(self._store, key))
        return b""

    # -- administration --

    def _flush_all(self, words: list[bytes]) -> bytes:
        delay: int | None = 0
        if len(words) > 1 and words[1:] != [b"noreply"]:
            delay = parse_signed(words[1])
        if delay is None:
            return BAD_EXPTIME
        self._store.flush(delay)
        return OK

    def administer(self, words: list[bytes]) -> bytes:
        """Execute a command for the server itself."""
        execute, _least, _most = ADMINISTRATION[words[0]]
        return execute(self._store, words)

    def _version(self, _words: list[bytes]) -> bytes:
        # Like quit and stats, memcached's version ignores "noreply".
        self._out.append(b"VERSION %b\r\n" % VERSION)
        return b""

    def _stats(self, words: list[bytes]) -> bytes:
        if words[1:2] == [b"reset"]:
            self._statistics.reset()
            self._out.append(b"RESET\r\n")
            return b""
        report = self._statistics.report(words[1:])
        if report is None or isinstance(report, bytes):
            self.work -= _REPORT_WORK
            self._out.append(report or ERROR)
        else:
            self._report_more(report)
        return b""

    def _report_more(self, report: Iterator[bytes]) -> None:
        """Send as many lines of a long report as this turn allows."""
        for line in report:
            self._out.append(line)
            self.work -= 1
            if self.work <= 0:
                self._report = report
                self.paused = True
                return
        self._report = None

    def _quit(self, _words: list[bytes]) -> bytes:
        self.hang_up = True
        return b""

    #: Commands, what executes them, and how few and how many words they take.
    COMMANDS: ClassVar[
        dict[bytes, tuple[Callable[[Session, list[bytes]], bytes | None], int, int]]
    ] = {
        b"get": (_get, 2, _ANY),
        b"gets": (_get, 2, _ANY),
        b"gat": (_get_and_touch, 2, _ANY),
        b"gats": (_get_and_touch, 2, _ANY),
        b"delete": (_delete, 2, 4),
        b"incr": (_count_up_or_down, 3, 4),
        b"decr": (_count_up_or_down, 3, 4),
        b"touch": (_touch, 3, 4),
        b"mg": (_meta_get, 2, _ANY),
        b"md": (_meta_change, 2, _ANY),
        b"ma": (_meta_change, 2, _ANY),
        b"mn": (_meta_noop, 1, _ANY),
        b"me": (_meta_debug, 1, _ANY),
        b"flush_all": (_flush_all, 1, 3),
        b"version": (_version, 1, _ANY),
        b"stats": (_stats, 1, _ANY),
        b"quit": (_quit, 1, _ANY),
    }


def _skip_spaces(data: bytes, start: int, end: int) -> int:
    """Where the first byte other than a space is; ``end`` if there is none."""
    found = _ANYTHING.search(data, start, end)
    return found.start() if found is not None else end


def _has_long_key(data: bytes, start: int, end: int) -> bool:
    """Whether one of the words in ``data[start:end]`` is too long for a key.

    It looks at one space in 251 bytes, where it can.
    """
    while end - start > MAX_KEY:
        space = data.rfind(b" ", start, start + MAX_KEY + 1)
        if space < 0:
            return True
        start = space + 1
    return False


#: The same of all commands: of these, and of those for the server itself.
_COMMANDS = Session.COMMANDS | {
    verb: (Session.administer, least, most)
    for verb, (_execute, least, most) in ADMINISTRATION.items()
}
#: Unknown commands beginning with these are answered even if they look like HTTP.
_OWN_BRANCH = frozenset((b"g", b"s", b"a", b"c", b"i", b"d", b"t"))
