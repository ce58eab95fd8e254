"""``stackmap ports``, ``conns`` and ``stats``: what the module's ports hold and have done."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import click

from .click_errors import SentenceCommand, examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from stackmap.inspect import ConnectionInfo, PortInfo, RingInfo

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print all there is, as JSON.")

# rich and pyroute2 take a third of a second to import, which other commands need not pay.
# ruff: noqa: PLC0415


@click.command(cls=SentenceCommand, epilog=examples("stackmap ports", "stackmap ports --json"))
@_AS_JSON
def ports(*, as_json: bool) -> None:
    """Show bound NICs and open ports.

    For a NIC it also says who may open ports on it, and for a port if its NIC is no longer bound.
    Everybody may ask; it shows those of this network namespace.
    """
    from pyroute2 import IPRoute

    from stackmap.inspect import Inspector, bound_nics

    from .qdisc import other_qdiscs

    with Inspector() as inspector, IPRoute() as route:
        found, nics, others = inspector.ports(), bound_nics(route), other_qdiscs(route)
    if as_json:
        _print_json({"nics": [asdict(nic) for nic in nics], "ports": [asdict(p) for p in found]})
        return
    for nic in nics:
        click.echo(f"{nic.name} is bound: {nic.grants}.")
    if not nics:
        click.echo("No NIC is bound.")
    if found:
        _print_table(ports_table(found, others))
    else:
        click.echo("No port is open.")


@click.command(cls=SentenceCommand, epilog=examples("stackmap conns", "stackmap conns --json"))
@_AS_JSON
def conns(*, as_json: bool) -> None:
    """Show connections that are attached to ports.

    Everybody may ask; it shows those of this network namespace.  INODE is what `ss -e` calls ino.
    """
    from stackmap.inspect import Inspector

    with Inspector() as inspector:
        found = inspector.connections()
    if as_json:
        _print_json([asdict(connection) for connection in found])
    elif found:
        _print_table(connections_table(found))
    else:
        click.echo("No connection is attached.")


@click.command(cls=SentenceCommand, epilog=examples("stackmap stats", "stackmap stats --json"))
@_AS_JSON
def stats(*, as_json: bool) -> None:
    """Show counters of open ports and their rings.

    Everybody may ask; it shows those of this network namespace.
    """
    from pyroute2 import IPRoute

    from stackmap.inspect import Inspector

    from .qdisc import other_qdiscs

    with Inspector() as inspector, IPRoute() as route:
        found, rings, others = inspector.ports(), inspector.rings(), other_qdiscs(route)
    of_port = [(port, [ring for ring in rings if ring.mem_id == port.mem_id]) for port in found]
    if as_json:
        _print_json(
            [asdict(port) | {"rings": [asdict(ring) for ring in own]} for port, own in of_port]
        )
        return
    for port, own in of_port:
        _print_table(counters_table(port, own, others))
    if not found:
        click.echo("No port is open.")


def _title(port: PortInfo, others: Mapping[str, str]) -> str:
    """A port's name and, if its NIC is not bound, what has become of the binding."""
    if port.ifindex is not None:
        return port.name
    other = others.get(port.name.removeprefix("tcp:"))
    return f"{port.name} (no longer bound{f': its qdisc is {other} now' if other else ''})"


def ports_table(found: Sequence[PortInfo], others: Mapping[str, str]) -> Table:
    """One line for each port; ``others`` are qdiscs in place of the module's, by NIC."""
    headings = "PORT NAME PID UID RINGS TX-SLOTS RX-SLOTS BUFFERS FREE PINNED CONNS MAX"
    return _table(
        headings.split(),
        [
            [
                port.mem_id,
                _title(port, others),
                port.pid,
                port.uid,
                port.rings,
                port.tx_slots,
                port.rx_slots,
                port.bufs,
                port.bufs_free,
                port.bufs_pinned,
                port.counters.connections,
                port.connections_max,
            ]
            for port in found
        ],
    )


def connections_table(found: Sequence[ConnectionInfo]) -> Table:
    """One line for each connection."""
    headings = "PORT RING ID INODE STATE LOCAL PEER PINNED BYTES REST FLAGS"
    return _table(
        headings.split(),
        [
            [
                conn.mem_id,
                conn.ring,
                conn.id,
                conn.inode,
                conn.state,
                _address(conn.local, conn.local_port),
                _address(conn.peer, conn.peer_port),
                conn.bufs_pinned,
                conn.bytes_pinned,
                conn.rest,
                ",".join(f for f in ("paused", "blocked", "leaving") if getattr(conn, f)),
            ]
            for conn in found
        ],
    )


def counters_table(port: PortInfo, rings: Sequence[RingInfo], others: Mapping[str, str]) -> Table:
    """One line for each counter; a column for each ring where there are several."""
    own = [ring.counters for ring in rings] if len(rings) > 1 else []
    return _table(
        [
            f"PORT {port.mem_id}, {_title(port, others)}",
            "ALL",
            *(f"RING {ring.index}" for ring in rings if own),
        ],
        [
            [field.name.replace("_", "-"), *(getattr(c, field.name) for c in (port.counters, *own))]
            for field in fields(port.counters)
        ],
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str | int]]) -> Table:
    """A plain table; columns of numbers are aligned to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, cell in zip(headings, rows[0], strict=True):
        table.add_column(
            heading, justify="right" if isinstance(cell, int) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _print_table(table: Table) -> None:
    """Print a table, as wide as the terminal is or, into a pipe, as wide as it needs."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False, markup=False)
    if not sys.stdout.isatty():
        unlimited = console.options.update(max_width=sys.maxsize)
        console.width = Measurement.get(console, unlimited, table).maximum
    console.print(table)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
