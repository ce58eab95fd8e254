"""``stackmap bind`` and ``stackmap unbind``: give a NIC to the module, and give it back.

A bound NIC has the module's queueing discipline at its root.  That is how the module gets packets
to the driver in batches; everything else that the kernel does with the NIC goes on.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from stackmap._errors import StackmapError

from .module import load_module
from .sentences import SentenceCommand

_CAP_NET_ADMIN = 12


class MissingRightError(StackmapError):
    """The command needs a right that its caller does not have."""


@click.command(cls=SentenceCommand)
@click.argument("nic")
@click.option(
    "--module", type=click.Path(path_type=Path), help="The stackmap.ko to load if none is."
)
@click.option("--force", is_flag=True, help="Bind it even if the default route leaves through it.")
def bind(nic: str, module: Path | None, *, force: bool) -> None:
    """Give NIC to stackmap, loading the kernel module if need be.

    Binding a NIC again changes nothing.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from . import link  # noqa: PLC0415 (imports it too)

    _require_net_admin("bind")
    with IPRoute() as route:
        state = link.read_nic(route, nic)
        if state.qdisc == link.KIND:
            click.echo(f"{nic} is bound already.")
            return
        link.check_bindable(state, force=force)
        load_module(module)
        link.set_qdisc(route, state)
    click.echo(f"{nic} is bound.")


@click.command(cls=SentenceCommand)
@click.argument("nic")
def unbind(nic: str) -> None:
    """Take NIC back from stackmap; its default queueing returns.

    Unbinding a NIC that is not bound changes nothing.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from . import link  # noqa: PLC0415 (imports it too)

    _require_net_admin("unbind")
    with IPRoute() as route:
        state = link.read_nic(route, nic)
        if state.qdisc != link.KIND:
            click.echo(f"{nic} is not bound.")
            return
        link.remove_qdisc(route, state)
    click.echo(f"{nic} is no longer bound.")


def _require_net_admin(command: str) -> None:
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if effective is None or not int(effective.group(1), 16) >> _CAP_NET_ADMIN & 1:
        raise MissingRightError(f"only root may {command} a NIC: run it with sudo")
