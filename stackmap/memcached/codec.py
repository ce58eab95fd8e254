"""The ASCII protocol without I/O: segments in, commands out.

Strategy: a push parser.  :meth:`Decoder.receive` takes a segment and calls one method per complete
command.  A line is found with one ``bytes.find`` and cut with one ``bytes.split``, on the segment
itself when nothing is left over from the one before, which is nearly always.  Only a retrieval of
many keys is not cut at once: two million keys would take 80 MB.

Memory is bounded: an incomplete line may have ``MAX_LINE`` bytes (``MAX_GET_LINE`` when it is a
retrieval of many keys), an incomplete value never exceeds what :meth:`Decoder.accepts` agreed to,
and both take no more than what has come of them (:attr:`Decoder.held` says how much).  Time is
linear in the input: leftovers are kept in a ``bytearray``, and the search for the newline goes on
where it stopped.  Work is bounded as well: after ``TURN`` commands the decoder pauses, so that its
owner can serve others.
"""

from __future__ import annotations

import abc
import re
from typing import TYPE_CHECKING

from stackmap.codec.memcached.flags import MAX_WORDS, FlagError, parse_flags
from stackmap.codec.memcached.text import (
    BAD_FORMAT,
    BINARY,
    BINARY_HEADER,
    ERROR,
    MAX_KEY,
    MAX_LENGTH,
    STORAGE,
    parse_client_flags,
    parse_signed,
    parse_unsigned,
)

if TYPE_CHECKING:
    from stackmap.codec import Buffer
    from stackmap.codec.memcached import Flags

#: An incomplete line longer than this is not memcached's protocol: hang up.
MAX_LINE = 2048
#: Unless it retrieves many keys; this is the bound for those (memcached has none).
MAX_GET_LINE = 4 << 20
_MAX_INDENT = 100
ALWAYS_ACCEPTED = 64 << 10
#: Commands executed, and keys looked up, until it is the turn of others: about 0.1 ms of work.
TURN = 64

_TOO_MANY_FLAGS = b"CLIENT_ERROR options flags too long\r\n"

#: Commands with a value.  The lines of ``ms`` have no certain number of words.
_STORAGE = {**STORAGE, b"ms": -5}
_RETRIEVAL = re.compile(rb" *(get|gets|gat|gats) ")


class Decoder(abc.ABC):
    """Cuts what one client sends into commands, and calls a method for each.

    Attributes:
        idle: nothing is left over: the next segment begins with a new command.
        paused: a turn has ended; the decoder keeps its input until :meth:`resume`.
        hang_up: the client is to be disconnected; further input is ignored.
        refused: so it is, and has been told why, which it must have time to read.
        work: how much of this turn is left; what costs more than a command takes more of it.
    """

    __slots__ = (
        "_at",
        "_body",
        "_body_size",
        "_fresh",
        "_header",
        "_left",
        "_meta",
        "_rest",
        "_searched",
        "_skip",
        "hang_up",
        "idle",
        "paused",
        "refused",
        "work",
    )

    def __init__(self) -> None:
        self.idle = False
        self.paused = False
        self.hang_up = False
        self.refused = False
        self.work = TURN
        #: No command was seen yet.
        self._fresh = True
        #: Input that is not parsed yet, and how much of it is known to have no newline.
        self._left = bytearray()
        self._searched = 0
        #: The input, and the position in it, at the end of a turn.  It comes before ``_left``.
        self._rest = b""
        self._at = 0
        #: The value being received, the size it will have with its line end, and its command.
        self._body: bytearray | None = None
        self._body_size = 0
        self._header = (b"", b"", 0, 0, 0, False)
        #: The flags of that command, if it is ``ms``.
        self._meta: Flags = {}
        #: Bytes of a refused value still to be ignored.
        self._skip = 0

    # -- commands, for a subclass --

    @abc.abstractmethod
    def command(self, words: list[bytes]) -> None:
        """A command without a value; ``words`` has at least one element, none empty or spaced."""

    @abc.abstractmethod
    def retrieval(self, verb: bytes, data: bytes, start: int, end: int) -> None:
        """A retrieval whose words after the verb are ``data[start:end]``, too many to be cut."""

    @abc.abstractmethod
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
        """A storage command; ``value`` is the callee's to keep.

        With ``ms`` only ``key`` and ``value`` are meant; the rest is in the flags that
        :meth:`check_meta_set` has seen.
        """

    @abc.abstractmethod
    def check_meta_set(self, flags: Flags) -> None:
        """Look at the flags of ``ms`` before its value is received.

        Raises:
            FlagError: they are refused.
        """

    @abc.abstractmethod
    def accepts(self, verb: bytes, key: bytes, flags: int, length: int, *, noreply: bool) -> bool:
        """Whether a value of ``length`` bytes can be taken; if not, it was answered already.

        Not asked about values of up to ``ALWAYS_ACCEPTED`` bytes.
        """

    @abc.abstractmethod
    def error(self, reply: bytes) -> None:
        """A malformed command is to be answered with ``reply``."""

    @abc.abstractmethod
    def bad_chunk(self, *, noreply: bool) -> None:
        """A value does not end where its line says."""

    @abc.abstractmethod
    def binary(self, header: bytes) -> None:
        """The client speaks the binary protocol; ``header`` is that of its first request."""

    # -- input --

    @property
    def held(self) -> int:
        """Bytes of input in memory: unfinished commands, and those that wait for their turn."""
        body = self._body
        return len(self._left) + len(self._rest) + (len(body) if body is not None else 0)

    @property
    def in_value(self) -> bool:
        """Whether the value of a storage command is being received."""
        return self._body is not None

    @property
    def skipping(self) -> bool:
        """Whether a value that was refused is being received."""
        return self._skip > 0

    @property
    def backlog(self) -> int:
        """Bytes of input that came while ``paused`` was set."""
        return len(self._left) if self.paused else 0

    def receive(self, view: Buffer) -> None:
        """Take the next segment.  It is not referred to after this returns."""
        if self.paused:
            self._left += view
        elif not self.hang_up:
            self.work = TURN
            if self.idle:
                self._parse(bytes(view), 0)
            else:
                self._receive_more(memoryview(view))

    def resume(self) -> None:
        """Go on with the input that was kept while ``paused`` was set."""
        self.paused = False
        self.work = TURN
        self._proceed()

    def _proceed(self) -> None:
        if self._rest:
            data, self._rest = self._rest, b""
            self._parse(data, self._at)
        elif self._left:
            self._go_on()
        else:
            self.idle = self._body is None and not self._skip

    def drop_value(self) -> bool:
        """Ignore the rest of the value being received; False if there is none.

        What has come of it is freed, and the client is not told.
        """
        if self._body is None:
            return False
        self._skip = self._body_size - len(self._body)
        self._body = None
        return True

    def drop(self) -> None:
        """Free everything; the client is to be disconnected."""
        self.hang_up = True
        self.idle = self.paused = False
        self._body = None
        self._rest = b""
        self._left = bytearray()

    def _receive_more(self, view: memoryview) -> None:
        """Take a segment that continues something."""
        if self._fresh and not self._begins_with_text(view):
            return
        start = 0
        if self._body is not None:
            start = self._body_size - len(self._body)
            self._body += view[:start]
            if len(self._body) < self._body_size:
                return
            self._complete(self._body)
        elif self._skip:
            start = min(self._skip, len(view))
            self._skip -= start
        if start < len(view):
            self._left += view[start:]
            if not self.paused:
                self._parse_left()
        else:
            self.idle = not (self._skip or self.paused or self.hang_up)

    def _begins_with_text(self, view: memoryview) -> bool:
        """Tell the binary protocol, which is not spoken here, by its first byte."""
        if self._left or bytes(view[:1]) == BINARY:
            self._left += view[: BINARY_HEADER - len(self._left)]
            if len(self._left) == BINARY_HEADER:
                header = bytes(self._left)
                self.drop()
                self.binary(header)
            return False
        self._fresh = False
        return True

    def _parse_left(self) -> None:
        if self._left.find(b"\n", self._searched) < 0:
            self._searched = len(self._left)
            self.idle = not self._left
            self._check_length()
            return
        data = bytes(self._left)
        self._left.clear()
        self._searched = 0
        self._parse(data, 0)

    def _complete(self, body: bytearray) -> None:
        """The value that needed several segments is here."""
        self._body = None
        if body.endswith(b"\r\n"):
            with memoryview(body) as view:
                self.storage(*self._header, bytes(view[:-2]))
        else:
            self.bad_chunk(noreply=self._header[5])

    def _parse(self, data: bytes, start: int) -> None:
        """Execute the commands that ``data`` completes from ``start`` on, and keep the rest."""
        find = data.find
        storage = _STORAGE
        size = len(data)
        while start < size:
            end = find(b"\n", start)
            if end < 0:
                break
            line_end = end - 1 if end > start and data[end - 1] == 13 else end
            if line_end - start > MAX_LINE and (many := _RETRIEVAL.match(data, start, line_end)):
                self.retrieval(many[1], data, many.end(), line_end)
                start = end + 1
            else:
                words = data[start:line_end].split(b" ")
                start = end + 1
                if b"" in words:
                    words = [word for word in words if word]
                if not words:
                    self.error(ERROR)
                elif words[0] in storage:
                    start = self._storage_line(words, data, start)
                else:
                    self.command(words)
            self.work -= 1
            if self.work <= 0:
                self.paused = True
            if self.paused or self.hang_up:
                break
        if self.paused or self.hang_up:
            self.idle = False
            if start < size and not self.hang_up:
                self._rest = data
                self._at = start
        elif start < size:
            self._keep(data[start:])
        elif self._left:
            self._go_on()
        else:
            # Beyond it, if a value, or what is to be skipped, goes on in the next segment.
            self.idle = start == size

    def _keep(self, unfinished: bytes) -> None:
        """Keep the beginning of a line."""
        self.idle = False
        if self._left:
            # It was kept during a pause, and continues the line.
            self._left[:0] = unfinished
            self._searched = 0
            self._parse_left()
        else:
            self._left += unfinished
            self._searched = len(unfinished)
            self._check_length()

    def _go_on(self) -> None:
        """Take what came during a pause."""
        later = bytes(self._left)
        self._left.clear()
        self._searched = 0
        self._receive_more(memoryview(later))

    def _storage_line(self, words: list[bytes], data: bytes, start: int) -> int:
        """Handle a storage command whose value begins at ``start``.

        Returns where the next command begins, which is beyond ``data`` if that is not here yet.
        """
        verb = words[0]
        count = len(words)
        needed = _STORAGE[verb]
        if count != needed and count != needed + 1:
            if verb == b"ms":
                return self._meta_set_line(words, data, start)
            self.error(ERROR)
            return start
        noreply = count > needed and words[-1] == b"noreply"
        key = words[1]
        flags = 0 if words[2] == b"0" else parse_client_flags(words[2])
        exptime = 0 if words[3] == b"0" else parse_signed(words[3])
        length = parse_signed(words[4])
        cas = parse_unsigned(words[5]) if needed > 5 else 0
        if (
            len(key) > MAX_KEY
            or flags is None
            or exptime is None
            or length is None
            or cas is None
            or not 0 <= length <= MAX_LENGTH
        ):
            if not noreply:
                self.error(BAD_FORMAT)
            return start
        end = start + length
        here = end + 2 <= len(data)
        if length > ALWAYS_ACCEPTED and not self.accepts(verb, key, flags, length, noreply=noreply):
            self._skip = max(end + 2 - len(data), 0)
        elif not here:
            self._body = bytearray(data[start:])
            self._body_size = length + 2
            self._header = (verb, key, flags, exptime, cas, noreply)
        elif data[end : end + 2] == b"\r\n":
            self.storage(verb, key, flags, exptime, cas, noreply, data[start:end])
        else:
            self.bad_chunk(noreply=noreply)
        return end + 2

    def _meta_set_line(self, words: list[bytes], data: bytes, start: int) -> int:
        """As :meth:`_storage_line`, for ``ms``."""
        count = len(words)
        length = parse_signed(words[2]) if count > 2 else None
        if count < 2:
            self.error(ERROR)
            return start
        if len(words[1]) > MAX_KEY or count < 3:
            self.error(BAD_FORMAT)
            return start
        if count > MAX_WORDS:
            self.error(_TOO_MANY_FLAGS)
            return start
        if length is None or not 0 <= length <= MAX_LENGTH:
            self.error(BAD_FORMAT)
            return start
        end = start + length
        try:
            key, flags = parse_flags(words, 3)
            self.check_meta_set(flags)
        except FlagError as error:
            self.error(error.reply)
            self._skip = max(end + 2 - len(data), 0)
            return end + 2
        client_flags = number if isinstance(number := flags.get("F"), int) else 0
        self._meta = flags
        if length > ALWAYS_ACCEPTED and not self.accepts(
            b"ms", key, client_flags, length, noreply=False
        ):
            self._skip = max(end + 2 - len(data), 0)
        elif end + 2 > len(data):
            self._body = bytearray(data[start:])
            self._body_size = length + 2
            self._header = (b"ms", key, client_flags, 0, 0, False)
        elif data[end : end + 2] == b"\r\n":
            self.storage(b"ms", key, client_flags, 0, 0, False, data[start:end])
        else:
            self.bad_chunk(noreply=False)
        return end + 2

    def _check_length(self) -> None:
        """Hang up on an incomplete line that is too long to become a command."""
        left = self._left
        if len(left) > MAX_LINE:
            words = bytes(left[: _MAX_INDENT + 5]).lstrip(b" ")
            indent = min(len(left), _MAX_INDENT + 5) - len(words)
            if (
                indent > _MAX_INDENT
                or not words.startswith((b"get ", b"gets "))
                or len(left) > MAX_GET_LINE
            ):
                self.hang_up = True
                left.clear()
