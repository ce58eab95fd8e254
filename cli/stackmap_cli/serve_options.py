"""Options of the commands of ``stackmap serve``, and their common beginning."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from stackmap import Backend, Port, choose_port
from stackmap.errors import StackmapError
from stackmap.memcached.statistics import BACKLOG

from .completion import complete_nic

if TYPE_CHECKING:
    from collections.abc import Callable

#: The first port that any user may listen on, unless ``ip_unprivileged_port_start`` says otherwise.
_UNPRIVILEGED = 1024

F = TypeVar("F", bound="Callable[..., Any]")


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


def _nic_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("a NIC has a name")
    return value


backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "stackmap", "sockets"]),
    default="auto",
    show_default=True,
    help="Rings shared with the kernel module, or ordinary sockets; auto: rings if possible.",
)
nic_option = click.option(
    "--nic",
    callback=_nic_name,
    shell_complete=complete_nic,
    metavar="NIC",
    help="The bound NIC to use, if there are several (not with --backend sockets).",
)


def listen_option(default: str) -> Callable[[F], F]:
    """``--listen``, with a default."""
    return click.option(
        "--listen",
        callback=_address,
        default=default,
        show_default=True,
        metavar="HOST:PORT",
        help="Where to listen; IPv6 addresses are written in brackets, and port 0 is any.",
    )


def model_option(default: str) -> Callable[[F], F]:
    """``--model``, with a default."""
    return click.option(
        "--model",
        type=click.Choice(["loop", "service", "actors"]),
        default=default,
        show_default=True,
        help="How the server is written: a bare loop on a port, a service, or actors.",
    )


def choose(backend: str, nic: str | None) -> tuple[Port, str]:
    """Open a port as the options say; also returns why it is that one.

    Raises:
        click.UsageError: the options contradict each other.
        BackendUnavailableError: there is no such port.
    """
    if nic is not None and backend == "sockets":
        raise click.UsageError("--nic names a NIC for rings; it has no use with --backend sockets")
    return choose_port(cast(Backend, backend), nic)


def announce(backend: str, port: Port, reason: str, listener: socket.socket) -> None:
    """Say which backend it is and where it listens."""
    if backend == "auto":
        say(f"using {port.backend} {reason}")
    host, number = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    say(f"listening on {name}:{number}, backend {port.backend}, pid {os.getpid()}")


def say(line: str) -> None:
    """Print a line, if anybody still reads; the server goes on if not."""
    with contextlib.suppress(OSError):
        click.echo(line)
        return
    # Python would flush its buffer at exit, fail again, and complain.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def listen_on(address: tuple[str, int]) -> socket.socket:
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
        remedy = ""
        if failure.errno == errno.EACCES and number < _UNPRIVILEGED:
            remedy = f" (ports below {_UNPRIVILEGED} are root's): choose another one, or use sudo"
        raise StackmapError(
            f"cannot listen on {name}:{number}: {failure.strerror}{remedy}"
        ) from failure
    return listener
