"""The server's answers to ``stats``.

The names are memcached's, all of them and in its order, because clients and monitors look for them
and some check.  The values are this server's; a thing that it does not have counts 0.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import socket
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from stackmap import __version__
from stackmap.codec.memcached.text import parse_unsigned

from .administration import VERSION
from .codec import TURN
from .prefixes import DELIMITER
from .store import MAX_ITEM, NO_WORD, Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stackmap import Port

    from .store import Store


#: The last slab class memcached can have.
_MAX_CLASS = 63
#: Keys listed by "stats cachedump" at most.
_MAX_DUMP = 10_000
#: The most connections that wait to be accepted, by the kernel's account.
BACKLOG = 1024
#: Descriptors that are not connections: the standard files, the port's, listeners, and what Python
#: opens for a moment.
RESERVED_DESCRIPTORS = 32
_ON_USAGE = b"CLIENT_ERROR usage: stats detail on|off|dump\r\n"


@dataclasses.dataclass
class ConnectionCounters:
    """Counters of clients that connected."""

    current: int = 0
    total: int = 0
    rejected: int = 0
    #: Turns that ended with commands left over.
    yields: int = 0
    idle_kicks: int = 0
    #: Disconnected because memory was short for a long line, or for replies it did not take.
    lines_dropped: int = 0
    replies_dropped: int = 0
    #: How often accepting stopped for want of descriptors, and for how many microseconds.
    listen_disabled: int = 0
    listen_disabled_us: int = 0


class Client(NamedTuple):
    """A connection, as ``stats conns`` shows it.

    Attributes:
        sock: its socket.
        state: the name that memcached has for what it is doing.
        heard: when it last gave a sign of life, in seconds of the store's clock.
    """

    sock: socket.socket
    state: str
    heard: int


class Host(Protocol):
    """A server, as its reports show it."""

    listeners: Sequence[socket.socket]
    max_connections: int
    idle_timeout: int
    accepting: bool

    @property
    def waiting_bytes(self) -> int:
        """Memory that is reserved for what waits in connections."""
        ...

    def clients(self) -> Iterable[Client]:
        """The connections."""
        ...

    def model_report(self) -> Mapping[str, object]:
        """What ``stats stackmap`` says of the way in which the server is built."""
        ...


class ServerStatistics:
    """The reports of one server.

    ``stats`` has memcached's names and nothing else, because some clients check; the counters of
    the port are in ``stats stackmap``.
    """

    def __init__(self, server: Host, store: Store, port: Port) -> None:
        self.connections = ConnectionCounters()
        self._server = server
        self._store = store
        self._port = port
        self._started = time.monotonic()
        self._started_at = store.now

    def report(self, words: list[bytes]) -> bytes | Iterator[bytes] | None:
        """The reply to ``stats WORDS``, if it is long line by line.

        None if there is no such report.
        """
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
            return self._conns()
        elif words[0] == b"extstore":
            lines = {}
        elif words[0] == b"cachedump":
            return self._cachedump(words[1:])
        elif words[0] == b"detail":
            return self._detail(words[1:])
        elif words[0] == b"stackmap":
            lines = self._stackmap()
        else:
            return None
        text = "".join(f"STAT {name} {value}\r\n" for name, value in lines.items())
        return text.encode() + b"END\r\n"

    def reset(self) -> None:
        """Set the counters back to 0 (but not the port's, which experiments subtract)."""
        self._store.counters = Counters()
        self._store.prefixes.clear()
        self.connections = ConnectionCounters(current=self.connections.current)

    def summary(self) -> str:
        """One sentence about the server's life, for the log."""
        counters = self._store.counters
        port = self._port.stats()
        return (
            f"{self.connections.total} connections, "
            f"{counters.get_hits} hits, {counters.get_misses} misses, {counters.cmd_set} stores, "
            f"{counters.evictions} evictions; "
            f"received {port.rx_bytes} bytes in rings and {port.socket_rx_bytes} by sockets, "
            f"sent {port.tx_bytes} and {port.socket_tx_bytes}"
        )

    def _general(self) -> dict[str, object]:
        server = self._server
        store = self._store
        counters = store.counters
        connections = self.connections
        port = self._port.stats()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        lines: dict[str, object] = {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self._started),
            "time": store.now,
            "version": VERSION.decode(),
            "libevent": 0,
            "pointer_size": 64,
            "rusage_user": f"{usage.ru_utime:.6f}",
            "rusage_system": f"{usage.ru_stime:.6f}",
            "max_connections": server.max_connections,
            "curr_connections": connections.current,
            "total_connections": connections.total,
            "rejected_connections": connections.rejected,
            "connection_structures": connections.current + len(server.listeners),
            "response_obj_oom": connections.replies_dropped,
            "response_obj_count": 0,
            "response_obj_bytes": 0,
            "read_buf_count": 0,
            "read_buf_bytes": 0,
            "read_buf_bytes_free": 0,
            "read_buf_oom": connections.lines_dropped,
            "reserved_fds": RESERVED_DESCRIPTORS,
            "cmd_get": counters.get_hits + counters.get_misses,
            "cmd_set": counters.cmd_set,
            "cmd_flush": counters.cmd_flush,
            "cmd_touch": counters.touch_hits + counters.touch_misses,
            "cmd_meta": counters.cmd_meta,
            "get_hits": counters.get_hits,
            "get_misses": counters.get_misses,
            "get_expired": counters.get_expired,
            "get_flushed": counters.get_flushed,
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
            "auth_cmds": 0,
            "auth_errors": 0,
        }
        if server.idle_timeout:
            lines["idle_kicks"] = connections.idle_kicks
        lines |= {
            "bytes_read": port.rx_bytes + port.socket_rx_bytes,
            "bytes_written": port.tx_bytes + port.socket_tx_bytes,
            "limit_maxbytes": store.limit,
            "accepting_conns": int(server.accepting),
            "listen_disabled_num": connections.listen_disabled,
            "time_in_listen_disabled_us": connections.listen_disabled_us,
            "threads": 1,
            "conn_yields": connections.yields,
        }
        lines |= dict.fromkeys(
            (
                "hash_power_level", "hash_bytes", "hash_is_expanding", "slab_reassign_rescues",
                "slab_reassign_chunk_rescues", "slab_reassign_evictions_nomem",
                "slab_reassign_inline_reclaim", "slab_reassign_busy_items",
                "slab_reassign_busy_deletes", "slab_reassign_running", "slabs_moved",
                "lru_crawler_running", "lru_crawler_starts", "lru_maintainer_juggles",
            ),
            0,
        )  # fmt: skip
        lines["malloc_fails"] = counters.malloc_fails
        lines |= dict.fromkeys(
            (
                "log_worker_dropped", "log_worker_written", "log_watcher_skipped",
                "log_watcher_sent", "log_watchers", "unexpected_napi_ids", "round_robin_fallback",
            ),
            0,
        )  # fmt: skip
        return lines | {
            "bytes": store.bytes,
            "curr_items": len(store),
            "total_items": counters.total_items,
            "slab_global_page_pool": 0,
            "expired_unfetched": counters.expired_unfetched,
            "evicted_unfetched": counters.evicted_unfetched,
            # There is one LRU list, and every retrieval moves an item to its head.
            "evicted_active": 0,
            "evictions": counters.evictions,
            "reclaimed": counters.reclaimed,
            **_lru(counters),
            "lru_bumps_dropped": 0,
        }

    def _settings(self) -> dict[str, object]:
        server = self._server
        host, port = "NULL", 0
        if server.listeners:
            host, port = server.listeners[0].getsockname()[:2]
        return {
            "maxbytes": self._store.limit,
            "maxconns": server.max_connections,
            "tcpport": port,
            "udpport": 0,
            "inter": host,
            "verbosity": 0,
            "oldest": 0,
            "evictions": "on",
            "domain_socket": "NULL",
            "umask": 0,
            "shutdown_command": "no",
            "growth_factor": 0,
            "chunk_size": 0,
            "num_threads": 1,
            "num_threads_per_udp": 0,
            "stat_key_prefix": DELIMITER.decode(),
            "detail_enabled": "yes" if self._store.prefixes.on else "no",
            "reqs_per_event": TURN,
            "cas_enabled": "yes",
            "tcp_backlog": BACKLOG,
            "binding_protocol": "ascii",
            "auth_enabled_sasl": "no",
            "auth_enabled_ascii": "no",
            "item_size_max": MAX_ITEM,
            "maxconns_fast": "yes",
            "hashpower_init": 0,
            "slab_reassign": "no",
            "slab_automove": 0,
            "slab_automove_ratio": 0,
            "slab_automove_window": 0,
            "slab_chunk_max": 0,
            "lru_crawler": "no",
            "lru_crawler_sleep": 0,
            "lru_crawler_tocrawl": 0,
            "tail_repair_time": 0,
            "flush_enabled": "yes",
            "dump_enabled": "no",
            "hash_algorithm": "siphash",
            "lru_maintainer_thread": "no",
            "lru_segmented": "no",
            "hot_lru_pct": 0,
            "warm_lru_pct": 0,
            "hot_max_factor": 0,
            "warm_max_factor": 0,
            "temp_lru": "no",
            "temporary_ttl": 0,
            "idle_timeout": server.idle_timeout,
            "watcher_logbuf_size": 0,
            "worker_logbuf_size": 0,
            "read_buf_mem_limit": 0,
            "track_sizes": "no",
            "inline_ascii_response": "no",
            **dict.fromkeys(
                (
                    "ext_item_size", "ext_item_age", "ext_low_ttl", "ext_recache_rate",
                    "ext_wbuf_size", "ext_compact_under", "ext_drop_under", "ext_max_sleep",
                    "ext_max_frag", "slab_automove_freeratio",
                ),
                0,
            ),
            "ext_drop_unread": "no",
            "ssl_enabled": "no",
            "ssl_chain_cert": "(null)",
            "ssl_key": "(null)",
            "ssl_verify_mode": 0,
            "ssl_keyformat": 0,
            "ssl_ciphers": "NULL",
            "ssl_ca_cert": "NULL",
            "ssl_wbuf_size": 0,
            "ssl_session_cache": "no",
            "ssl_kernel_tls": "no",
            "ssl_min_version": "NULL",
            "num_napi_ids": "(null)",
            "memory_file": "(null)",
        }  # fmt: skip

    def _items(self) -> dict[str, object]:
        """Items are not sorted into classes by size, so all of them are in class 1."""
        store = self._store
        if not len(store):
            return {}
        counters = store.counters
        age = store.age
        lines = {
            "number": len(store),
            "number_hot": 0,
            "number_warm": 0,
            "number_cold": len(store),
            "age_hot": 0,
            "age_warm": 0,
            "age": age,
            "mem_requested": store.bytes,
            "evicted": counters.evictions,
            "evicted_nonzero": counters.evicted_nonzero,
            "evicted_time": counters.evicted_time,
            "outofmemory": counters.store_no_memory,
            "tailrepairs": 0,
            "reclaimed": counters.reclaimed,
            "expired_unfetched": counters.expired_unfetched,
            "evicted_unfetched": counters.evicted_unfetched,
            "evicted_active": 0,
            **_lru(counters),
            "hits_to_hot": 0,
            "hits_to_warm": 0,
            "hits_to_cold": counters.get_hits,
            "hits_to_temp": 0,
        }
        return {f"items:1:{name}": value for name, value in lines.items()}

    def _slabs(self) -> dict[str, object]:
        """There are no slabs: class 1 has as many chunks as there are items."""
        store = self._store
        counters = store.counters
        if not counters.cmd_set and not len(store):
            return {"active_slabs": 0, "total_malloced": 0}
        return {
            "1:chunk_size": 0,
            "1:chunks_per_page": 0,
            "1:total_pages": 0,
            "1:total_chunks": len(store),
            "1:used_chunks": len(store),
            "1:free_chunks": 0,
            "1:free_chunks_end": 0,
            "1:get_hits": counters.get_hits,
            "1:cmd_set": counters.cmd_set,
            "1:delete_hits": counters.delete_hits,
            "1:incr_hits": counters.incr_hits,
            "1:decr_hits": counters.decr_hits,
            "1:cas_hits": counters.cas_hits,
            "1:cas_badval": counters.cas_badval,
            "1:touch_hits": counters.touch_hits,
            "active_slabs": 1,
            "total_malloced": store.bytes,
        }

    def _conns(self) -> Iterator[bytes]:
        now = self._store.now
        for listener in self._server.listeners:
            address = _address(listener, listener.getsockname())
            yield _conn(listener, address, "", "conn_listening", now - self._started_at)
        for sock, state, heard in self._server.clients():
            try:
                peer, name = sock.getpeername(), sock.getsockname()
            except OSError:
                continue  # it has ended
            yield _conn(
                sock, _address(sock, peer), _address(sock, name), state, self._store.now - heard
            )
        yield b"END\r\n"

    def _detail(self, words: list[bytes]) -> bytes:
        prefixes = self._store.prefixes
        what = words[0] if words else b""
        if what == b"dump":
            return prefixes.dump()
        if what not in {b"on", b"off"}:
            return _ON_USAGE
        self._store.count_prefixes(on=what == b"on")
        return b"OK\r\n"

    def _cachedump(self, words: list[bytes]) -> bytes | Iterator[bytes]:
        if len(words) < 2:
            return b"CLIENT_ERROR bad command line\r\n"
        slab_class = parse_unsigned(words[0])
        limit = parse_unsigned(words[1])
        if slab_class is None or limit is None:
            return b"CLIENT_ERROR bad command line format\r\n"
        if slab_class > _MAX_CLASS:
            return b"CLIENT_ERROR Illegal slab id\r\n"
        most = min(limit or _MAX_DUMP, _MAX_DUMP) if slab_class == 1 else 0
        return self._dump(self._store.newest(most))

    def _dump(self, keys: list[bytes]) -> Iterator[bytes]:
        for key in keys:
            item = self._store.peek(key)
            if item is not None and not item.marks & NO_WORD:
                yield b"ITEM %b [%d b; %d s]\r\n" % (key, len(item.value), item.expires)
        yield b"END\r\n"

    def _stackmap(self) -> dict[str, object]:
        lines: dict[str, object] = {
            "server": "stackmap",
            "release": __version__,
            "backend": self._port.backend,
            "waiting_bytes": self._server.waiting_bytes,
            **self._server.model_report(),
        }
        for name, value in dataclasses.asdict(self._port.stats()).items():
            lines[f"stackmap_{name}"] = value
        return lines


def _lru(counters: Counters) -> dict[str, object]:
    """The LRU list's part of two reports: there is one list, without a crawler."""
    return {
        "crawler_reclaimed": 0,
        "crawler_items_checked": 0,
        "lrutail_reflocked": 0,
        "moves_to_cold": 0,
        "moves_to_warm": 0,
        "moves_within_lru": 0,
        "direct_reclaims": counters.evictions + counters.reclaimed,
    }


def _conn(sock: socket.socket, address: str, listen_address: str, state: str, idle: int) -> bytes:
    """One socket's lines of ``stats conns``."""
    fields = {"addr": address, "listen_addr": listen_address, "state": state}
    fields["secs_since_last_cmd"] = str(idle)
    number = sock.fileno()
    return "".join(
        f"STAT {number}:{name} {value}\r\n" for name, value in fields.items() if value
    ).encode()


def _address(sock: socket.socket, address: tuple[str, int]) -> str:
    """An address as memcached writes it."""
    if sock.family == socket.AF_INET6:
        return f"tcp6:[{address[0]}]:{address[1]}"
    return f"tcp:{address[0]}:{address[1]}"
