"""``stackmap bind`` and ``stackmap unbind``: give a NIC to the module, and give it back.

A bound NIC has the module's queueing discipline at its root.  That is how the module gets packets
to the driver in batches; everything else that the kernel does with the NIC goes on.
"""

from __future__ import annotations

import grp
import pwd
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stackmap._errors import StackmapError

from .module import load_module
from .sentences import SentenceCommand

if TYPE_CHECKING:
    from collections.abc import Callable

_CAP_NET_ADMIN = 12
#: The one after it means "nobody" to the kernel.
_MAX_ID = 0xFFFFFFFE


class UnknownNameError(StackmapError):
    """A user or a group that does not exist."""


class MissingRightError(StackmapError):
    """The command needs a right that its caller does not have."""


@click.command(cls=SentenceCommand)
@click.argument("nic")
@click.option(
    "--module", type=click.Path(path_type=Path), help="The stackmap.ko to load if none is."
)
@click.option("--force", is_flag=True, help="Bind it even if the default route leaves through it.")
@click.option("--user", help="Who may open ports on it besides root: a name or a number.")
@click.option("--group", help="The group whose members may.")
def bind(
    nic: str, module: Path | None, *, force: bool, user: str | None, group: str | None
) -> None:
    """Give NIC to stackmap, loading the kernel module if need be.

    Binding a NIC again changes nothing, but for who may open ports: --user and --group replace
    what was said before.  Ports that are open stay open.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from . import link  # noqa: PLC0415 (imports it too)

    grants = link.Grants(_uid(user), _gid(group))
    _require_net_admin("bind")
    with IPRoute(ext_ack=True) as route:
        state = link.read_nic(route, nic)
        bound_already = state.qdisc == link.KIND
        if not bound_already:
            link.check_bindable(state, force=force)
            load_module(module)
        if grants or not bound_already:
            link.set_qdisc(route, state, grants or None)
    bound = f"{nic} is bound already" if bound_already else f"{nic} is bound"
    click.echo(f"{bound}; now {grants}." if grants else f"{bound}.")


@click.command(cls=SentenceCommand)
@click.argument("nic")
def unbind(nic: str) -> None:
    """Take NIC back from stackmap; its default queueing returns.

    Unbinding a NIC that is not bound changes nothing.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from . import link  # noqa: PLC0415 (imports it too)

    _require_net_admin("unbind")
    with IPRoute(ext_ack=True) as route:
        state = link.read_nic(route, nic)
        if state.qdisc != link.KIND:
            click.echo(f"{nic} is not bound.")
            return
        link.remove_qdisc(route, state)
    click.echo(f"{nic} is no longer bound.")


def _uid(user: str | None) -> int | None:
    return _number("user", user, lambda name: pwd.getpwnam(name).pw_uid)


def _gid(group: str | None) -> int | None:
    return _number("group", group, lambda name: grp.getgrnam(name).gr_gid)


def _number(what: str, name: str | None, look_up: Callable[[str], int]) -> int | None:
    """The number of a user or a group, who may be named by it.

    Raises:
        UnknownNameError: there is none.
    """
    if name is None:
        return None
    try:
        number = int(name) if name.isdecimal() else look_up(name)
    except KeyError:
        raise UnknownNameError(f"there is no {what} {name} here") from None
    if number > _MAX_ID:
        raise UnknownNameError(f"no {what} has the number {number}: {_MAX_ID} is the largest")
    return number


def _require_net_admin(command: str) -> None:
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if effective is None or not int(effective.group(1), 16) >> _CAP_NET_ADMIN & 1:
        raise MissingRightError(f"only root may {command} a NIC: run it with sudo")
