"""``stackmap serve``: servers to try the data path with."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING, cast

import click

from stackmap import Backend, choose_port
from stackmap.errors import StackmapError
from stackmap.memcached import Server, Store
from stackmap.memcached.server import DEFAULT_MAX_CONNECTIONS, MAX_IDLE_TIMEOUT
from stackmap.memcached.statistics import BACKLOG, RESERVED_DESCRIPTORS

from .click_errors import SentenceGroup, examples
from .completion import complete_nic

if TYPE_CHECKING:
    from types import FrameType

_MB = 1 << 20


@click.group(cls=SentenceGroup, epilog=examples("stackmap serve memcached"))
def serve() -> None:
    """Run a server on rings, or on sockets."""


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` at its last colon; IPv6 addresses are in brackets."""
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT with a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise click.BadParameter(f"{host!r} is no IPv6 address") from None
    elif ":" in host or "[" in host or "]" in host:
        raise click.BadParameter(f"{value!r}: write an IPv6 address in brackets, as in [::1]:11211")
    return host, int(port)


def _megabytes(_ctx: click.Context, _param: click.Parameter, value: int) -> int:
    """Refuse what this machine cannot hold."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MB
    if value > most:
        raise click.BadParameter(f"{value} MB is more than this machine has, {most} MB")
    return value


def _nic_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("a NIC has a name")
    return value


@serve.command(
    epilog=examples(
        "stackmap serve memcached",
        "sudo stackmap serve memcached --listen 192.0.2.1:11211 --nic eth1 --memory 1024",
    )
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "stackmap", "sockets"]),
    default="auto",
    show_default=True,
    help="Rings shared with the kernel module, or ordinary sockets; auto: rings if possible.",
)
@click.option(
    "--listen",
    callback=_address,
    default="127.0.0.1:11211",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; IPv6 addresses are written in brackets, and port 0 is any.",
)
@click.option(
    "--memory",
    type=click.IntRange(1),
    callback=_megabytes,
    default=64,
    show_default=True,
    metavar="MB",
    help="Memory for items, unfinished commands and queued replies; the least recently used items "
    "make room for new ones.",
)
@click.option(
    "--nic",
    callback=_nic_name,
    shell_complete=complete_nic,
    metavar="NIC",
    help="The bound NIC to use, if there are several (not with --backend sockets).",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=DEFAULT_MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="Clients to serve at a time.",
)
@click.option(
    "--idle-timeout",
    type=click.IntRange(0, MAX_IDLE_TIMEOUT),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="Disconnect clients that sent and took nothing for so long; 0: never.",
)
def memcached(
    *,
    backend: str,
    listen: tuple[str, int],
    memory: int,
    nic: str | None,
    max_connections: int,
    idle_timeout: int,
) -> None:
    """A memcached-like server (text protocol).

    It speaks the classic commands, and the meta commands (mg, ms, ...) as memcached 1.6.18 has
    them. The binary protocol is refused: the client is told so, and disconnected.

    It runs until it is told to stop by SIGTERM, SIGUSR1 or Ctrl-C; clients then get what they
    asked for, unless it is told so twice. SIGHUP is ignored.
    """
    if nic is not None and backend == "sockets":
        raise click.UsageError("--nic names a NIC for rings; it has no use with --backend sockets")
    _allow_descriptors(max_connections)
    port, reason = choose_port(cast(Backend, backend), nic)
    with port, _listen(listen) as listener:
        server = Server(
            port,
            [listener],
            Store(memory * _MB),
            max_connections=max_connections,
            idle_timeout=idle_timeout,
        )

        def stop(_signal: int, _frame: FrameType | None) -> None:
            server.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # The server makes no reference cycles: a collection would walk all items for nothing.
        gc.disable()
        if backend == "auto":
            _say(f"using {port.backend} {reason}")
        host, number = listener.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        _say(f"listening on {name}:{number}, backend {port.backend}, pid {os.getpid()}")
        server.run()
        _say(f"stopped after {server.statistics.summary()}")


def _say(line: str) -> None:
    """Print a line, if anybody still reads; the server goes on if not."""
    with contextlib.suppress(OSError):
        click.echo(line)
        return
    # Python would flush its buffer at exit, fail again, and complain.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def _allow_descriptors(max_connections: int) -> None:
    """Raise the soft limit of descriptors for so many connections.

    Raises:
        StackmapError: the hard limit is lower.
    """
    needed = max_connections + RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = hard - RESERVED_DESCRIPTORS
        advice = f"use --max-connections {most}, or raise" if most > 0 else "raise"
        raise StackmapError(
            f"{max_connections} connections need {needed} file descriptors, and this process may "
            f"have {hard}: {advice} the limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(address: tuple[str, int]) -> socket.socket:
    """Listen on an address.

    Raises:
        StackmapError: it is in use, not an address of this host, not allowed.
    """
    host, number = address
    name = f"[{host}]" if ":" in host else host
    try:
        family, kind, protocol, _name, resolved = socket.getaddrinfo(
            host or None, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (UnicodeError, ValueError) as failure:
        raise StackmapError(f"cannot listen on {name}:{number}: that is no host name") from failure
    except OSError as failure:
        raise StackmapError(f"cannot listen on {name}:{number}: {failure.strerror}") from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(BACKLOG)
    except OSError as failure:
        listener.close()
        raise StackmapError(f"cannot listen on {name}:{number}: {failure.strerror}") from failure
    return listener
