"""The ASCII protocol without I/O: segments in, commands out.

Strategy: a push parser.  :meth:`Decoder.receive` takes a segment and calls one method per complete
command.  A line is found with one ``bytes.find`` and cut with one ``bytes.split``, on the segment
itself when nothing is left over from the one before, which is nearly always.

Memory is bounded: an incomplete line may have ``MAX_LINE`` bytes (``MAX_GET_LINE`` when it is a
retrieval of many keys), and an incomplete value has one buffer of its final size, which never
exceeds what :meth:`Decoder.accepts` agreed to.  Time is linear in the input: leftovers are kept in
a ``bytearray``, and the search for the newline goes on where it stopped.
"""

from __future__ import annotations

import abc
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackmap._port import Buffer

MAX_KEY = 250
#: An incomplete line longer than this is not memcached's protocol: hang up.
MAX_LINE = 2048
#: Unless it retrieves many keys; this is the bound for those (memcached has none).
MAX_GET_LINE = 4 << 20
_MAX_INDENT = 100
ALWAYS_ACCEPTED = 64 << 10

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_CHUNK = b"CLIENT_ERROR bad data chunk\r\n"
ERROR = b"ERROR\r\n"

#: Storage commands, and how many words their lines have without ``noreply``.
_STORAGE = {
    b"set": 5,
    b"add": 5,
    b"replace": 5,
    b"append": 5,
    b"prepend": 5,
    b"cas": 6,
}
_NUMBER = re.compile(rb"[\t-\r ]*([+-]?)0*(\d{1,20})(?=[\t-\r ]|\Z)")
_MAX_LENGTH = (1 << 31) - 3


def parse_unsigned(word: bytes) -> int | None:
    """A 64-bit unsigned number as memcached reads it; None if it is none."""
    if word.isdigit() and len(word) < 20:
        return int(word)
    match = _NUMBER.match(word)
    if match is None:
        return None
    number = int(match[2])
    if number >= 1 << 64:
        return None
    if match[1] == b"-":
        number = -number % (1 << 64)
        if number >= 1 << 63:
            return None
    return number


def parse_signed(word: bytes) -> int | None:
    """A signed number as memcached reads it: 64 bits are looked at, 32 are kept."""
    if word.isdigit() and len(word) < 10:
        return int(word)
    match = _NUMBER.match(word)
    if match is None:
        return None
    number = int(match[1] + match[2])
    if not -(1 << 63) <= number < 1 << 63:
        return None
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


class Decoder(abc.ABC):
    """Cuts what one client sends into commands, and calls a method for each.

    Attributes:
        hang_up: the client is to be disconnected; further input is ignored.
        paused: set by a command that has produced enough output; the decoder then keeps its input
            until :meth:`resume`.
    """

    __slots__ = (
        "_body",
        "_filled",
        "_fresh",
        "_header",
        "_idle",
        "_left",
        "_searched",
        "_skip",
        "hang_up",
        "paused",
    )

    def __init__(self) -> None:
        self.hang_up = False
        self.paused = False
        #: Nothing is left over: the next segment begins with a new command.
        self._idle = False
        #: No command was seen yet.
        self._fresh = True
        #: Input that is not parsed yet, and how much of it is known to have no newline.
        self._left = bytearray()
        self._searched = 0
        #: The value (with its line end) being received, how much of it is here, and its command.
        self._body: bytearray | None = None
        self._filled = 0
        self._header = (b"", b"", 0, 0, 0, False)
        #: Bytes of a refused value still to be ignored.
        self._skip = 0

    # -- what a subclass does with commands --

    @abc.abstractmethod
    def command(self, words: list[bytes]) -> None:
        """A command without a value; ``words`` has at least one element, none empty or spaced."""

    @abc.abstractmethod
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
        """A storage command; ``value`` is the callee's to keep."""

    @abc.abstractmethod
    def accepts(self, verb: bytes, key: bytes, flags: int, length: int, *, noreply: bool) -> bool:
        """Whether a value of ``length`` bytes can be taken; if not, it was answered already.

        Not asked about values of up to ``ALWAYS_ACCEPTED`` bytes.
        """

    @abc.abstractmethod
    def error(self, reply: bytes) -> None:
        """A malformed command is to be answered with ``reply``."""

    # -- input --

    def receive(self, view: Buffer) -> None:
        """Take the next segment.  It is not referred to after this returns."""
        if self._idle:
            self._parse(bytes(view))
        elif self.paused:
            self._left += view
        elif not self.hang_up:
            self._receive_more(memoryview(view))

    def resume(self) -> None:
        """Go on with the input that was kept while ``paused`` was set."""
        self.paused = False
        self._parse_left()

    def _receive_more(self, view: memoryview) -> None:
        """Take a segment that continues something."""
        if self._fresh:
            if view[0] == 0x80:
                # The binary protocol, which is not spoken here.
                self.hang_up = True
                return
            self._fresh = False
        start = 0
        body = self._body
        if body is not None:
            start = min(len(body) - self._filled, len(view))
            body[self._filled : self._filled + start] = view[:start]
            self._filled += start
            if self._filled < len(body):
                return
            self._complete(body)
        elif self._skip:
            start = min(self._skip, len(view))
            self._skip -= start
        if start < len(view):
            self._left += view[start:]
            self._parse_left()
        else:
            self._idle = not (self._skip or self.paused or self.hang_up)

    def _parse_left(self) -> None:
        if self._left.find(b"\n", self._searched) < 0:
            self._searched = len(self._left)
            self._idle = not self._left
            self._check_length()
            return
        data = bytes(self._left)
        self._left.clear()
        self._searched = 0
        self._parse(data)

    def _complete(self, body: bytearray) -> None:
        """The value that needed several segments is here."""
        self._body = None
        if body.endswith(b"\r\n"):
            del body[-2:]
            self.storage(*self._header, body)
        elif not self._header[5]:
            self.error(BAD_CHUNK)

    def _parse(self, data: bytes) -> None:
        """Execute all commands that ``data`` completes, and keep the rest."""
        find = data.find
        storage = _STORAGE
        size = len(data)
        start = 0
        while start < size:
            end = find(b"\n", start)
            if end < 0:
                break
            line_end = end - 1 if end > start and data[end - 1] == 13 else end
            words = data[start:line_end].split(b" ")
            start = end + 1
            if b"" in words:
                words = [word for word in words if word]
                if not words:
                    self.error(ERROR)
                    continue
            if words[0] in storage:
                start = self._storage_line(words, data, start)
                if start > size:
                    # The value, or what is to be skipped, goes on in the next segment.
                    self._idle = False
                    return
            else:
                self.command(words)
            if self.paused or self.hang_up:
                break
        if start < size and not self.hang_up:
            self._idle = False
            self._left += data[start:]
            if not self.paused:
                self._searched = len(self._left)
                self._check_length()
        else:
            self._idle = not (self.paused or self.hang_up)

    def _storage_line(self, words: list[bytes], data: bytes, start: int) -> int:
        """Handle a storage command whose value begins at ``start``.

        Returns where the next command begins, which is beyond ``data`` if that is not here yet.
        """
        verb = words[0]
        count = len(words)
        needed = _STORAGE[verb]
        if count != needed and count != needed + 1:
            self.error(ERROR)
            return start
        noreply = count > needed and words[-1] == b"noreply"
        key = words[1]
        flags = 0 if words[2] == b"0" else parse_unsigned(words[2])
        exptime = 0 if words[3] == b"0" else parse_signed(words[3])
        length = parse_signed(words[4])
        cas = parse_unsigned(words[5]) if needed > 5 else 0
        if (
            len(key) > MAX_KEY
            or flags is None
            or exptime is None
            or length is None
            or cas is None
            or not 0 <= length <= _MAX_LENGTH
        ):
            if not noreply:
                self.error(BAD_FORMAT)
            return start
        flags &= 0xFFFFFFFF
        end = start + length
        here = end + 2 <= len(data)
        if length > ALWAYS_ACCEPTED and not self.accepts(verb, key, flags, length, noreply=noreply):
            self._skip = max(end + 2 - len(data), 0)
        elif not here:
            self._body = bytearray(length + 2)
            self._filled = len(data) - start
            self._body[: self._filled] = data[start:]
            self._header = (verb, key, flags, exptime, cas, noreply)
        elif data[end : end + 2] == b"\r\n":
            self.storage(verb, key, flags, exptime, cas, noreply, data[start:end])
        elif not noreply:
            self.error(BAD_CHUNK)
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
