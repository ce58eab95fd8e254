"""Find out whether this machine needs a NIC itself: default routes, the caller's SSH session."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .topology import outgoing, read_topology, wide_routes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyroute2 import IPRoute


@dataclass(frozen=True)
class SshSession:
    """The two ends of an SSH session, as addresses without a scope."""

    client: str
    server: str
    #: The NIC that link-local addresses are of.
    scope: str | None = None


def uses_of(route: IPRoute, index: int) -> list[str]:
    """Say what packets of the machine's own leave by a NIC, and through which devices on it.

    Returns:
        Objects of "the NIC carries ...".
    """
    topology = read_topology(route)
    ways = topology.above(topology.devices[index])
    found = [
        f"{wide.destination} ({_through(ways[wide.oif])}table {wide.table})"
        for wide in wide_routes(route, topology)
        if wide.oif in ways
    ]
    session = ssh_session()
    if session is not None:
        through = [ways[index] for index in _devices_of(route, session) if index in ways]
        if through:
            way = _through(min(through, key=len)).rstrip(", ")
            found.append(f"your SSH session from {session.client}" + (way and f" ({way})"))
    return list(dict.fromkeys(found))


def _through(way: Sequence[str]) -> str:
    return f"through {' and '.join(way)}, " if way else ""


def _devices_of(route: IPRoute, session: SshSession) -> set[int]:
    """The NIC that has the session's local address, and the one by which its packets leave."""
    server = ipaddress.ip_address(session.server)
    holders = {
        entry["index"]
        for entry in list(route.get_addr())
        if server
        in (
            ipaddress.ip_address(address)
            for name in ("IFA_LOCAL", "IFA_ADDRESS")
            if (address := entry.get_attr(name))
        )
    }
    if not holders:
        return set()  # the session is another network namespace's
    oif = socket.if_nametoindex(session.scope) if session.scope else None
    hop = outgoing(route, session.client, source=session.server, oif=oif)
    return holders | ({hop} if hop is not None else set())


def ssh_session(pid: int | str = "self", proc: Path = Path("/proc")) -> SshSession | None:
    """The SSH session that a process was started from; None if there is none to be seen.

    sshd leaves ``SSH_CONNECTION`` in the environment.  sudo takes it away, but not from the
    shell that sudo was started from: the first of the process's forebears to have it tells.
    """
    for environment in _environments(pid, proc):
        found = re.search(rb"(?:^|\0)SSH_CONNECTION=(\S+) \d+ (\S+) \d+\0", environment)
        if found is not None:
            client, _, scope = found[1].decode().partition("%")
            server = found[2].decode().partition("%")[0]
            return SshSession(client, server, scope or None)
    return None


def _environments(pid: int | str, proc: Path) -> Iterator[bytes]:
    """The environments of a process, its parent, and so on; those that may not be read left out."""
    while pid:
        folder = proc / str(pid)
        try:
            yield (folder / "environ").read_bytes()
        except PermissionError:
            yield b""
        except OSError:
            return
        # The name, in parentheses, may contain anything.
        pid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
