"""``stackmap serve``: servers to try the data path with."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from stackmap.errors import StackmapError
from stackmap.memcached import Server, Store
from stackmap.memcached.server import DEFAULT_MAX_CONNECTIONS, MAX_IDLE_TIMEOUT
from stackmap.memcached.statistics import RESERVED_DESCRIPTORS

from .click_errors import SentenceGroup, examples
from .serve_options import (
    announce,
    backend_option,
    choose,
    listen_on,
    listen_option,
    model_option,
    nic_option,
    say,
)
from .serve_small import echo, http

if TYPE_CHECKING:
    from types import FrameType

_MB = 1 << 20


@click.group(
    cls=SentenceGroup,
    epilog=examples("stackmap serve memcached", "stackmap serve http --root public"),
)
def serve() -> None:
    """Run a server on rings, or on sockets."""


def _megabytes(_ctx: click.Context, _param: click.Parameter, value: int) -> int:
    """Refuse what this machine cannot hold."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MB
    if value > most:
        raise click.BadParameter(f"{value} MB is more than this machine has, {most} MB")
    return value


@serve.command(
    epilog=examples(
        "stackmap serve memcached",
        "sudo stackmap serve memcached --listen 192.0.2.1:11211 --nic eth1 --memory 1024",
    )
)
@model_option("loop")
@backend_option
@listen_option("127.0.0.1:11211")
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
@nic_option
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=DEFAULT_MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="Clients to serve at a time; the model loop turns others away, the others let them wait.",
)
@click.option(
    "--idle-timeout",
    type=click.IntRange(0, MAX_IDLE_TIMEOUT),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="Disconnect clients that sent and took nothing for so long, or with other models than "
    "loop sent no complete command; 0: never.",
)
def memcached(
    *,
    model: str,
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
    asked for, unless it is told so twice. The exit code is 0 if they did, 1 if some were cut off,
    after 5 seconds or because it was told so twice. SIGHUP is ignored.
    """
    _allow_descriptors(max_connections)
    port, reason = choose(backend, nic)
    with port, listen_on(listen) as listener:
        server = _server_class(model)(
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
        if model == "loop":
            # It makes no reference cycles: a collection would walk all items for nothing.
            gc.disable()
        announce(backend, port, reason, listener)
        server.run()
        say(f"stopped after {server.statistics.summary()}")
    sys.exit(1 if server.cut_off else 0)


def _server_class(model: str) -> Any:
    """The class of a model's server; asyncio, which takes a while, is imported if it is needed."""
    if model == "service":
        from stackmap.memcached.service import ServiceServer  # noqa: PLC0415

        return ServiceServer
    if model == "actors":
        from stackmap.memcached.actors import ActorServer  # noqa: PLC0415

        return ActorServer
    return Server


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


serve.add_command(echo)
serve.add_command(http)
