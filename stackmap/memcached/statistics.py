"""What the server answers to ``stats``."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from typing import TYPE_CHECKING

from .codec import parse_unsigned
from .session import VERSION
from .store import MAX_ITEM, Counters

if TYPE_CHECKING:
    from stackmap._port import Port

    from .store import Store


#: The last slab class memcached can have.
_MAX_CLASS = 63
#: Keys listed by "stats cachedump" at most.
_MAX_DUMP = 10_000


@dataclasses.dataclass
class ConnectionCounters:
    """What became of the clients that connected."""

    current: int = 0
    total: int = 0
    rejected: int = 0


class ServerStatistics:
    """The reports of one server.

    ``stats`` has memcached's names and nothing else, because some clients check; the counters of
    the port are in ``stats stackmap``.
    """

    def __init__(self, store: Store, port: Port, max_connections: int) -> None:
        self.connections = ConnectionCounters()
        self._store = store
        self._port = port
        self._max_connections = max_connections
        self._started = time.monotonic()

    def report(self, words: list[bytes]) -> bytes | None:
        """The whole reply to ``stats WORDS``; None if there is no such report."""
        if not words:
            lines = self._general()
        elif words[0] == b"settings":
            lines = self._settings()
        elif words[0] == b"items":
            lines = self._items()
        elif words[0] == b"slabs":
            lines = self._slabs()
        elif words[0] == b"sizes":
            lines = {"sizes_status": "disabled"}
        elif words[0] == b"conns":
            lines = {}
        elif words[0] == b"cachedump":
            return self._cachedump(words[1:])
        elif words[0] == b"stackmap":
            lines = self._stackmap()
        else:
            return None
        text = "".join(f"STAT {name} {value}\r\n" for name, value in lines.items())
        return text.encode() + b"END\r\n"

    def reset(self) -> None:
        """Set the counters back to 0 (but not the port's, which experiments subtract)."""
        self._store.counters = Counters()
        self.connections.total = 0
        self.connections.rejected = 0

    def summary(self) -> str:
        """One sentence about the server's life, for the log."""
        counters = self._store.counters
        port = self._port.stats()
        return (
            f"{self.connections.total} connections, "
            f"{counters.get_hits} hits, {counters.get_misses} misses, {counters.cmd_set} stores, "
            f"{counters.evictions} evictions; "
            f"received {port.ring_bytes_rx} bytes in rings and {port.socket_bytes_rx} by sockets, "
            f"sent {port.ring_bytes_tx} and {port.socket_bytes_tx}"
        )

    def _general(self) -> dict[str, object]:
        store = self._store
        counters = store.counters
        port = self._port.stats()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self._started),
            "time": store.now,
            "version": VERSION.decode(),
            "pointer_size": 64,
            "rusage_user": f"{usage.ru_utime:.6f}",
            "rusage_system": f"{usage.ru_stime:.6f}",
            "max_connections": self._max_connections,
            "curr_connections": self.connections.current,
            "total_connections": self.connections.total,
            "rejected_connections": self.connections.rejected,
            "cmd_get": counters.get_hits + counters.get_misses,
            "cmd_set": counters.cmd_set,
            "cmd_flush": counters.cmd_flush,
            "cmd_touch": counters.touch_hits + counters.touch_misses,
            "get_hits": counters.get_hits,
            "get_misses": counters.get_misses,
            "get_expired": counters.get_expired,
            "delete_misses": counters.delete_misses,
            "delete_hits": counters.delete_hits,
            "incr_misses": counters.incr_misses,
            "incr_hits": counters.incr_hits,
            "decr_misses": counters.decr_misses,
            "decr_hits": counters.decr_hits,
            "cas_misses": counters.cas_misses,
            "cas_hits": counters.cas_hits,
            "cas_badval": counters.cas_badval,
            "touch_hits": counters.touch_hits,
            "touch_misses": counters.touch_misses,
            "store_too_large": counters.store_too_large,
            "store_no_memory": counters.store_no_memory,
            "bytes_read": port.ring_bytes_rx + port.socket_bytes_rx,
            "bytes_written": port.ring_bytes_tx + port.socket_bytes_tx,
            "limit_maxbytes": store.limit,
            "accepting_conns": 1,
            "threads": 1,
            "bytes": store.bytes,
            "curr_items": len(store),
            "total_items": counters.total_items,
            "evictions": counters.evictions,
            "reclaimed": counters.reclaimed,
        }

    def _settings(self) -> dict[str, object]:
        return {
            "maxbytes": self._store.limit,
            "maxconns": self._max_connections,
            "udpport": 0,
            "verbosity": 0,
            "evictions": "on",
            "domain_socket": "NULL",
            "shutdown_command": "no",
            "num_threads": 1,
            "detail_enabled": "no",
            "cas_enabled": "yes",
            "binding_protocol": "ascii",
            "auth_enabled_sasl": "no",
            "auth_enabled_ascii": "no",
            "item_size_max": MAX_ITEM,
            "maxconns_fast": "yes",
            "flush_enabled": "yes",
            "lru_segmented": "no",
            "idle_timeout": 0,
        }

    def _items(self) -> dict[str, object]:
        """Items are not sorted into classes by size, so all of them are in class 1."""
        store = self._store
        if not len(store):
            return {}
        return {
            "items:1:number": len(store),
            "items:1:mem_requested": store.bytes,
            "items:1:evicted": store.counters.evictions,
            "items:1:reclaimed": store.counters.reclaimed,
        }

    def _slabs(self) -> dict[str, object]:
        return {"active_slabs": 0, "total_malloced": self._store.bytes}

    def _cachedump(self, words: list[bytes]) -> bytes:
        if len(words) < 2:
            return b"CLIENT_ERROR bad command line\r\n"
        slab_class = parse_unsigned(words[0])
        limit = parse_unsigned(words[1])
        if slab_class is None or limit is None:
            return b"CLIENT_ERROR bad command line format\r\n"
        if slab_class > _MAX_CLASS:
            return b"CLIENT_ERROR Illegal slab id\r\n"
        lines = []
        if slab_class == 1:
            for key, item in self._store.newest(min(limit or _MAX_DUMP, _MAX_DUMP)):
                lines.append(b"ITEM %b [%d b; %d s]\r\n" % (key, len(item.value), item.expires))
        return b"".join(lines) + b"END\r\n"

    def _stackmap(self) -> dict[str, object]:
        lines: dict[str, object] = {"backend": self._port.backend}
        for name, value in dataclasses.asdict(self._port.stats()).items():
            lines[f"stackmap_{name}"] = value
        return lines
