"""``stackmap serve``: servers to try the data path with."""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, cast

import click

from stackmap._errors import StackmapError
from stackmap._open import Backend, choose_port
from stackmap.memcached import Server, Store
from stackmap.memcached.server import DEFAULT_MAX_CONNECTIONS

from .sentences import SentenceGroup

if TYPE_CHECKING:
    from types import FrameType

_BACKLOG = 1024


@click.group(cls=SentenceGroup)
def serve() -> None:
    """Run a server on rings, or on sockets."""


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` at its last colon; IPv6 addresses are in brackets."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


@serve.command()
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
    help="Where to listen; port 0 for any.",
)
@click.option(
    "--memory",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="MB",
    help="Memory for items; the least recently used ones make room for new ones.",
)
@click.option("--nic", metavar="NIC", help="The bound NIC to use, if there are several.")
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=DEFAULT_MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="Clients to serve at a time.",
)
def memcached(
    *, backend: str, listen: tuple[str, int], memory: int, nic: str | None, max_connections: int
) -> None:
    """A memcached-like server (ASCII protocol).

    It runs until it is told to stop by SIGTERM or Ctrl-C; clients then get what they asked for.
    """
    port, reason = choose_port(cast(Backend, backend), nic)
    with port, _listen(listen) as listener:
        server = Server(port, [listener], Store(memory << 20), max_connections=max_connections)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            server.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        # The server makes no reference cycles: a collection would walk all items for nothing.
        gc.disable()
        if backend == "auto":
            click.echo(f"using {port.backend} {reason}")
        host, number = listener.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        click.echo(f"listening on {name}:{number}, backend {port.backend}, pid {os.getpid()}")
        server.run()
        click.echo(f"stopped after {server.statistics.summary()}")


def _listen(address: tuple[str, int]) -> socket.socket:
    """Listen on an address.

    Raises:
        StackmapError: it is in use, not an address of this host, not allowed.
    """
    host, number = address
    try:
        family, kind, protocol, _name, resolved = socket.getaddrinfo(
            host or None, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except UnicodeError as failure:
        raise StackmapError(f"cannot listen on {host}:{number}: that is no host name") from failure
    except OSError as failure:
        raise StackmapError(f"cannot listen on {host}:{number}: {failure.strerror}") from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(_BACKLOG)
    except OSError as failure:
        listener.close()
        raise StackmapError(f"cannot listen on {host}:{number}: {failure.strerror}") from failure
    return listener
