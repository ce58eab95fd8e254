"""Constants of memcached's text protocol, and its numbers."""

from __future__ import annotations

import re
import struct

MAX_KEY = 250

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_CHUNK = b"CLIENT_ERROR bad data chunk\r\n"
BAD_EXPTIME = b"CLIENT_ERROR invalid exptime argument\r\n"
BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument\r\n"
BAD_DELETE = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
ERROR = b"ERROR\r\n"

#: The first byte of the binary protocol's requests, and the size of their headers.
BINARY = b"\x80"
BINARY_HEADER = 24
_NO_BINARY = b"the binary protocol is not supported, use the text protocol"
#: A response of the binary protocol: magic, opcode, status "unknown command", lengths, opaque, CAS.
_BINARY_RESPONSE = struct.Struct(">BBHBBHI4sQ")
_UNKNOWN_COMMAND = 0x81

#: Storage commands, and how many words their lines have without ``noreply``.
STORAGE = {
    b"set": 5,
    b"add": 5,
    b"replace": 5,
    b"append": 5,
    b"prepend": 5,
    b"cas": 6,
}
#: The longest value that a line can announce.
MAX_LENGTH = (1 << 31) - 3

#: What follows a number may be anything behind a zero byte: C's strings end there.
_NUMBER = re.compile(rb"[\t-\r ]*([+-]?)0*(\d{1,20})(?=[\t-\r \0]|\Z)")


def refuse_binary(header: bytes) -> bytes:
    """Say in the binary protocol that it is not spoken; ``header`` is that of the request."""
    opcode, opaque = header[1], header[12:16]
    size = len(_NO_BINARY)
    response = _BINARY_RESPONSE.pack(0x81, opcode, 0, 0, 0, _UNKNOWN_COMMAND, size, opaque, 0)
    return response + _NO_BINARY


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


def parse_client_flags(word: bytes) -> int | None:
    """The client's own flags as memcached reads them: 64 bits are looked at, 32 are kept."""
    number = parse_unsigned(word)
    return None if number is None else number & 0xFFFFFFFF


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
