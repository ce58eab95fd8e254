"""Commands that administer the server: what they do, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackmap.codec.memcached.text import BAD_FORMAT, ERROR, parse_unsigned

if TYPE_CHECKING:
    from collections.abc import Callable

    from .store import Store

#: The memcached that this server is held to.  Clients read the number to see what they may use, and
#: some accept nothing but three numbers, so the server's own name is in ``stats stackmap``.
VERSION = b"1.6.18"
OK = b"OK\r\n"

#: Bounds of cache_memlimit's argument.
_LEAST_MEMORY = 8
_MOST_MEMORY = 1_000_000_000


def _cache_memlimit(store: Store, words: list[bytes]) -> bytes:
    megabytes = parse_unsigned(words[1])
    if megabytes is None:
        return ERROR
    if megabytes < _LEAST_MEMORY:
        return b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
    if megabytes > _MOST_MEMORY:
        return b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"
    store.set_limit(megabytes << 20)
    return OK


def _verbosity(_store: Store, words: list[bytes]) -> bytes:
    return BAD_FORMAT if parse_unsigned(words[1]) is None else OK


def _shutdown(_store: Store, _words: list[bytes]) -> bytes:
    return b"ERROR: shutdown not enabled\r\n"


#: What executes a command and returns its reply, and how few and how many words it takes.
ADMINISTRATION: dict[bytes, tuple[Callable[[Store, list[bytes]], bytes], int, int]] = {
    b"cache_memlimit": (_cache_memlimit, 2, 3),
    b"verbosity": (_verbosity, 2, 3),
    b"shutdown": (_shutdown, 1, 2),
}
