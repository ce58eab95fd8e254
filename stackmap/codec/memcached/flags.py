"""The flags of meta commands and of their responses: one letter, and perhaps a token behind it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

from stackmap.codec._errors import LocalProtocolError

from .text import BAD_FORMAT, MAX_KEY, parse_client_flags, parse_signed, parse_unsigned

#: A flag's token: a number where the protocol has one, else bytes; None if there is none.
Token = int | bytes | None
#: In the order of the line.
Flags = Mapping[str, Token]

#: Words that the flags of one command may have, the command and its key among them.
MAX_WORDS = 19
#: Bytes of an opaque flag, with its letter.
MAX_OPAQUE = 32

_BAD_TOKEN = b"CLIENT_ERROR bad token in command line format\r\n"
_DUPLICATE = b"CLIENT_ERROR duplicate flag\r\n"
_INVALID = b"CLIENT_ERROR invalid flag\r\n"
_BAD_KEY = b"CLIENT_ERROR error decoding key\r\n"
_OPAQUE_TOO_LONG = b"CLIENT_ERROR opaque token too long\r\n"
_BAD_SET_MODE = b"CLIENT_ERROR invalid mode for ms M token\r\n"
_BAD_MODE_LENGTH = b"CLIENT_ERROR incorrect length for M token\r\n"
_BAD_INITIAL = b"CLIENT_ERROR invalid numeric initial value\r\n"
_BAD_DELTA = b"CLIENT_ERROR invalid numeric delta value\r\n"

#: The flags of requests with a number, how it is read, and the error if it is none; None: the
#: error that is known so far.
_NUMBERS = {
    "N": (parse_signed, _BAD_TOKEN),
    "T": (parse_signed, _BAD_TOKEN),
    "R": (parse_signed, _BAD_TOKEN),
    "F": (parse_client_flags, None),
    "C": (parse_unsigned, _BAD_TOKEN),
    "J": (parse_unsigned, _BAD_INITIAL),
    "D": (parse_unsigned, _BAD_DELTA),
}
#: The flags that memcached 1.6.18 knows, each for every command.
KNOWN = frozenset("bNTRlOPLkstcfvhuqFCMJDI")
#: With those that later versions have added: E gives the new CAS number, x removes a value.
_NUMBERS_LATER = {**_NUMBERS, "E": (parse_unsigned, _BAD_TOKEN)}
KNOWN_LATER = KNOWN | frozenset("Ex")

_SET_MODES = frozenset((b"E", b"A", b"P", b"R", b"S"))

#: The flags of responses with a number.
_RESPONSE_NUMBERS = frozenset("tcfslh")

_BLANK = re.compile(rb"[\x00-\x20\x7f]")
#: What ends a word or a line.  memcached takes keys and tokens with other control characters.
_END_OF_WORD = re.compile(rb"[ \n]")
_NO_BASE64 = bytes(set(range(256)) - set(base64.b64encode(bytes(range(256)))) - set(b"+/="))


class FlagError(ValueError):
    """Flags of a request that memcached refuses.

    Attributes:
        reply: its answer.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply)
        self.reply = reply


def parse_flags(
    words: Sequence[bytes], start: int, *, later: bool = False
) -> tuple[bytes, dict[str, Token]]:
    """Read the flags of a meta command.

    Args:
        words: of its line; the second is the key.
        start: where the flags begin.
        later: accept flags that memcached 1.6.18 does not know.

    Returns:
        The key, decoded if the flags say so, and the flags.

    Raises:
        FlagError: there is a flag twice, an unknown one, or one with a wrong token.  With more than
            one error memcached says the last, unless the flag itself is wrong.
    """
    key = words[1]
    known, numbers = (KNOWN_LATER, _NUMBERS_LATER) if later else (KNOWN, _NUMBERS)
    flags: dict[str, Token] = {}
    wrong = False
    error = BAD_FORMAT
    for index in range(start, len(words)):
        word = words[index]
        flag = chr(word[0])
        if flag in flags or flag > "~":
            raise FlagError(_DUPLICATE)
        if flag not in known:
            raise FlagError(_INVALID)
        token: Token = word[1:] or None
        if flag in numbers:
            parse, text = numbers[flag]
            token = parse(word[1:])
            if token is None:
                wrong = True
                error = text or error
        elif flag == "b":
            decoded = decode_key(key)
            if decoded is None:
                wrong = True
                error = _BAD_KEY
            else:
                key = decoded
        elif flag == "M" and len(word) != 2:
            wrong = True
            error = _BAD_MODE_LENGTH
        flags[flag] = token
    if wrong:
        raise FlagError(error)
    return key, flags


def check_set(flags: Flags) -> None:
    """Look at the flags of ``ms``, before its value is received.

    Raises:
        FlagError: there is no such mode, or the opaque token is too long.
    """
    if "M" in flags and flags["M"] not in _SET_MODES:
        raise FlagError(_BAD_SET_MODE)
    if "O" in flags:
        check_opaque(flags["O"])


def check_opaque(token: Token) -> bytes:
    """The opaque token of a request.

    Raises:
        FlagError: it is too long.
    """
    text = token if isinstance(token, bytes) else b""
    if len(text) >= MAX_OPAQUE:
        raise FlagError(_OPAQUE_TOO_LONG)
    return text


def parse_response_flags(words: Sequence[bytes], start: int) -> dict[str, Token]:
    """Read the flags of a response.

    Raises:
        ValueError: they are not those of a response.
    """
    flags: dict[str, Token] = {}
    for index in range(start, len(words)):
        word = words[index]
        flag = chr(word[0])
        token: Token = word[1:] or None
        if flag in _RESPONSE_NUMBERS:
            token = int(word[1:])
        if flag in flags:
            raise ValueError(f"flag {flag} is there twice")
        flags[flag] = token
    key = flags.get("k")
    if "b" in flags and isinstance(key, bytes):
        flags["k"] = base64.b64decode(key, validate=True)
    return flags


def decode_key(text: bytes) -> bytes | None:
    """Decode base64 as memcached does, which skips all other characters; None if it is none."""
    text = text.translate(None, _NO_BASE64)
    if not text or len(text) % 4:
        return None
    pad_at = text.find(b"=")
    if pad_at < 0:
        return base64.b64decode(text)
    # The first block with padding is the last one.
    text = text[: pad_at // 4 * 4 + 4]
    pad = text.count(b"=")
    if pad > 2:
        return None
    return base64.b64decode(text.replace(b"=", b"A"))[:-pad]


def encode_flags(flags: Flags, *, echo: bool = False) -> bytes:
    """Encode the flags of a request or of a response, each with a space before it.

    Args:
        flags: by their letters.
        echo: the tokens are those of a client, which may have control characters.

    Raises:
        LocalProtocolError: a flag is no letter, or a token is not one word.
    """
    parts: list[bytes] = []
    for flag, token in flags.items():
        if len(flag) != 1 or not flag.isascii() or not flag.isalpha():
            raise LocalProtocolError(f"a flag is one letter, not {flag!r}")
        if token is None:
            text = b""
        elif isinstance(token, int):
            text = b"%d" % token
        elif flag == "k" and "b" in flags:
            text = base64.b64encode(token)
        else:
            text = token
            if (_END_OF_WORD if echo else _BLANK).search(token):
                raise LocalProtocolError(f"the token of flag {flag} is one word, not {token!r}")
        parts.append(b" %b%b" % (flag.encode(), text))
    return b"".join(parts)


def encode_key(key: bytes, *, binary: bool) -> bytes:
    """The key as a word of a line; in base64 if it is ``binary``.

    Raises:
        LocalProtocolError: it is none.
    """
    word = base64.b64encode(key) if binary else key
    check_key(word)
    return word


def check_key(word: bytes, *, echo: bool = False) -> None:
    """Check that a key is one word that servers take.

    Args:
        word: the key.
        echo: it is that of a client, which may have control characters.

    Raises:
        LocalProtocolError: it is not.
    """
    if not word or len(word) > MAX_KEY or (_END_OF_WORD if echo else _BLANK).search(word):
        raise LocalProtocolError(
            f"a key has 1 to {MAX_KEY} bytes, no spaces and no control characters: {word[:300]!r}"
        )
