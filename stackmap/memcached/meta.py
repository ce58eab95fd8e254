"""The meta commands, each a function from its key and flags to its reply.

Flags are executed, and answered, in the order in which the client has sent them, as memcached does.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from stackmap.codec.memcached.flags import FlagError, check_opaque

from .store import (
    BINARY_KEY,
    EXISTS,
    ITEM_HEADER,
    NOT_FOUND,
    NOT_STORED,
    STALE,
    STORED,
    WON,
)

if TYPE_CHECKING:
    from stackmap.codec.memcached import Flags, Token

    from .store import Item, Outcome, Store

MISS = b"EN\r\n"
_NOT_FOUND = b"NF"
_EXISTS = b"EX"
#: The codes of outcomes of storage commands.
_CODES = {STORED: b"HD", EXISTS: _EXISTS, NOT_FOUND: _NOT_FOUND, NOT_STORED: b"NS"}

_BAD_COUNT_MODE = b"CLIENT_ERROR invalid mode for ma M token\r\n"
NOT_A_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
_NO_MEMORY = b"SERVER_ERROR Out of memory allocating new item\r\n"

#: With one of these flags an item is used at the end of the command, so not if that fails.
_USED_LATE = frozenset("NTRhl")
#: memcached keeps an item of this size in several chunks, and a number is never in chunks.
_CHUNKED = 512 << 10
#: Whether a mode of ``ma`` counts down.
_COUNT_MODES = {b"I": False, b"+": False, b"D": True, b"-": True}


def get(store: Store, key: bytes, flags: Flags) -> tuple[bytes, Item | None]:
    """``mg``: the first line of the reply, and the item whose value follows it.

    Raises:
        FlagError: the opaque token is too long; the flags before it were executed.
    """
    counters = store.counters
    item = store.find(key)
    created = False
    if item is None and "N" in flags:
        item = store.create(key, b"")
        created = item is not None
        if created and "b" in flags:
            # As in memcached, its key is not said in base64.
            store.mark(key, 0)
    if item is None:
        counters.get_misses += 1
        line = [b"EN", *_echo(key, flags)]
        return b"" if "q" in flags else _line(line), None
    line = [b"VA %d" % len(item.value) if "v" in flags else b"HD"]
    won = created
    # What the reply says of the item's use is of the time before this command.
    use = "u" not in flags
    if use and flags.keys().isdisjoint(_USED_LATE):
        store.use(key, item)
        use = False
    for flag, token in flags.items():
        if flag == "T":
            item.expires = store.deadline(_number(token))
        elif flag == "N":
            if created:
                item.expires = store.deadline(_number(token))
        elif flag == "R":
            soon = item.expires != 0 and item.expires < store.deadline(_number(token))
            won = won or (soon and not created and not item.marks & WON)
        elif flag == "h":
            line.append(b"h1" if item.used >= 0 else b"h0")
        elif flag == "l":
            line.append(b"l%d" % (store.now - abs(item.used)))
        elif flag == "s":
            line.append(b"s%d" % len(item.value))
        elif flag == "f":
            line.append(b"f%d" % item.flags)
        elif flag == "c":
            line.append(b"c%d" % item.cas)
        elif flag == "t":
            line.append(_remaining(store, item))
        elif flag == "k":
            line.append(_key(key, binary=bool(item.marks & BINARY_KEY)))
        elif flag == "O":
            line.append(_opaque(token))
    if item.marks & WON:
        line.append(b"Z")
    if item.marks & STALE:
        line.append(b"X")
        won = won or not item.marks & WON
    if won:
        line.append(b"W")
        item.marks |= WON
    if use:
        store.use(key, item)
    if "T" in flags:
        counters.touch_hits += 1
    else:
        counters.get_hits += 1
    return _line(line), item if "v" in flags else None


def set(store: Store, key: bytes, flags: Flags, value: bytes) -> bytes:
    """``ms``; the flags have passed :func:`~stackmap.codec.memcached.flags.check_set`."""
    mode = flags.get("M", b"S")
    outcome = _store(store, key, flags, mode, value)
    code = _CODES.get(outcome)
    if code is None:
        return outcome
    if outcome is STORED:
        if "b" in flags:
            store.mark(key, 0 if mode in {b"A", b"P"} else BINARY_KEY)
        if "q" in flags:
            return b""
    line = [code]
    for flag, token in flags.items():
        if flag == "k":
            line.append(_key(key, binary="b" in flags))
        elif flag == "O":
            line.append(_opaque(token))
        elif flag == "c":
            line.append(b"c%d" % (store.last_cas if outcome is STORED else 0))
    return _line(line)


def _store(store: Store, key: bytes, flags: Flags, mode: object, value: bytes) -> Outcome:
    client_flags = _number(flags.get("F", 0))
    exptime = _number(flags.get("T", 0))
    if mode in {b"A", b"P"}:
        cas = _number(flags.get("C", 0))
        extend = store.append if mode == b"A" else store.prepend
        return extend(key, value, cas)
    if mode == b"E":
        return store.add(key, client_flags, exptime, value)
    if "C" in flags:
        cas = _number(flags["C"])
        return store.compare_and_set(key, client_flags, exptime, cas, value, stale="I" in flags)
    replace_or_set = store.replace if mode == b"R" else store.set
    return replace_or_set(key, client_flags, exptime, value)


def delete(store: Store, key: bytes, flags: Flags) -> bytes:
    """``md``.

    Raises:
        FlagError: the opaque token is too long.
    """
    words = _echo(key, flags)
    item = store.find(key)
    if item is None:
        store.counters.delete_misses += 1
        return _line([_NOT_FOUND, *words])
    if "C" in flags and item.cas != flags["C"]:
        store.counters.delete_misses += 1
        return _line([_EXISTS, *words])
    if "I" in flags:
        if "T" in flags:
            item.expires = store.deadline(_number(flags["T"]))
        store.invalidate(item)
    else:
        store.remove(key)
    return b"" if "q" in flags else _line([b"HD", *words])


def count(store: Store, key: bytes, flags: Flags) -> bytes:
    """``ma``.

    Raises:
        FlagError: there is no such mode, the value is no number, there is no room for a new item,
            or the opaque token is too long; in that case the number was changed.
    """
    mode = flags.get("M", b"I")
    down = _COUNT_MODES.get(mode) if isinstance(mode, bytes) else None
    if down is None:
        raise FlagError(_BAD_COUNT_MODE)
    item = store.find(key)
    created = False
    if item is None:
        if "N" not in flags:
            if down:
                store.counters.decr_misses += 1
            else:
                store.counters.incr_misses += 1
            return _line([_NOT_FOUND, *_echo(key, flags)])
        number = _number(flags.get("J", 0))
        item = store.create(key, b"%d" % number)
        if item is None:
            raise FlagError(_NO_MEMORY)
        created = True
    else:
        if len(item.value) >= _CHUNKED:
            raise FlagError(NOT_A_NUMBER)
        if item.value and flags.get("C", 0) not in {0, item.cas}:
            return _line([_EXISTS, *_echo(key, flags)])
        try:
            number = store.count_item(key, item, _number(flags.get("D", 1)), down=down)
        except ValueError:
            raise FlagError(NOT_A_NUMBER) from None
        item = store.peek(key) or item
    if "b" in flags:
        store.mark(key, 0)
    value = b"%d" % number
    line = [b"VA %d" % len(value) if "v" in flags else b"HD"]
    for flag, token in flags.items():
        if flag == "T":
            item.expires = store.deadline(_number(token))
        elif flag == "N":
            if created:
                item.expires = store.deadline(_number(token))
        elif flag == "c":
            line.append(b"c%d" % item.cas)
        elif flag == "t":
            line.append(_remaining(store, item))
        elif flag == "k":
            line.append(_key(key, binary="b" in flags))
        elif flag == "O":
            line.append(_opaque(token))
    if "q" in flags and not created:
        return b""
    return _line(line) + (value + b"\r\n" if "v" in flags else b"")


def debug(store: Store, key: bytes) -> bytes:
    """``me``: all that is known of an item."""
    store.counters.cmd_meta += 1
    item = store.find(key)
    if item is None:
        return MISS
    size = ITEM_HEADER + len(key) + (4 if item.flags else 0) + len(item.value)
    return b"ME %b exp=%d la=%d cas=%d fetch=%b cls=1 size=%d\r\n" % (
        base64.b64encode(key) if item.marks & BINARY_KEY else key,
        store.now - item.expires if item.expires else -1,
        store.now - abs(item.used),
        item.cas,
        b"yes" if item.used >= 0 else b"no",
        size,
    )


def _echo(key: bytes, flags: Flags) -> list[bytes]:
    """The flags of a reply that do not depend on an item."""
    words: list[bytes] = []
    for flag, token in flags.items():
        if flag == "k":
            words.append(_key(key, binary="b" in flags))
        elif flag == "O":
            words.append(_opaque(token))
    return words


def _key(key: bytes, *, binary: bool) -> bytes:
    return b"k%b b" % base64.b64encode(key) if binary else b"k" + key


def _opaque(token: Token) -> bytes:
    return b"O" + check_opaque(token)


def _remaining(store: Store, item: Item) -> bytes:
    """The seconds until the item expires; -1 if it never does."""
    return b"t%d" % (max(item.expires - store.now, 0) if item.expires else -1)


def _number(token: object) -> int:
    """The token of a flag that has a number, which the parser has seen to."""
    assert isinstance(token, int)
    return token


def _line(words: list[bytes]) -> bytes:
    return b" ".join(words) + b"\r\n"
