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

from stackmap.errors import StackmapError

from .click_errors import SentenceCommand, examples
from .completion import complete_group, complete_nic, complete_user
from .module import load_module

if TYPE_CHECKING:
    from collections.abc import Callable

_CAP_NET_ADMIN = 12
#: The one after it means "nobody" to the kernel.
_MAX_ID = 0xFFFFFFFE


class UnknownNameError(StackmapError):
    """A user or a group that does not exist."""


class MissingRightError(StackmapError):
    """The command needs a right that its caller does not have."""


@click.command(
    cls=SentenceCommand,
    epilog=examples(
        "sudo stackmap bind eth1",
        "sudo stackmap bind eth1 --user www-data",
        "sudo stackmap bind eth1 --module kmod/stackmap.ko",
    ),
)
@click.argument("nic", shell_complete=complete_nic)
@click.option(
    "--module", type=click.Path(path_type=Path), help="The stackmap.ko to load if none is."
)
@click.option(
    "--force", is_flag=True, help="Bind it even if it carries a default route or your SSH session."
)
@click.option(
    "--user",
    shell_complete=complete_user,
    help="A user, by name or number, who may open ports on it, as root may.",
)
@click.option(
    "--group",
    shell_complete=complete_group,
    help="A group, by name or number, whose members may open ports on it.",
)
def bind(
    nic: str, module: Path | None, *, force: bool, user: str | None, group: str | None
) -> None:
    """Bind NIC to stackmap, and load the kernel module if need be.

    A NIC that the machine needs itself is refused: the default route or your SSH session leaves
    by it, or by a VLAN, a bridge, a tunnel or another device on it.

    Binding a NIC again changes nothing, but for who may open ports: --user and --group replace
    what was said before.  Ports that are open stay open.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from stackmap.inspect import QDISC_KIND, Grants  # noqa: PLC0415 (imports it too)

    from . import qdisc, uses  # noqa: PLC0415

    grants = Grants(_uid(user), _gid(group))
    _require_net_admin("bind")
    with IPRoute(ext_ack=True) as route:
        state = qdisc.read_nic(route, nic)
        bound_already = state.qdisc == QDISC_KIND
        if not bound_already:
            qdisc.check_bindable(state)
            if not force:
                qdisc.check_unused(state, uses.uses_of(route, state.index))
            load_module(module)
        if grants or not bound_already:
            qdisc.set_qdisc(route, state, grants or None)
    bound = f"{state.name} is bound already" if bound_already else f"{state.name} is bound"
    click.echo(f"{bound}; now {grants}." if grants else f"{bound}.")


@click.command(cls=SentenceCommand, epilog=examples("sudo stackmap unbind eth1"))
@click.argument("nic", shell_complete=complete_nic)
def unbind(nic: str) -> None:
    """Unbind NIC: its default queueing returns.

    Unbinding a NIC that is not bound changes nothing.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 (takes 0.3 s that other commands need not pay)

    from stackmap.inspect import QDISC_KIND  # noqa: PLC0415 (imports it too)

    from . import qdisc  # noqa: PLC0415

    _require_net_admin("unbind")
    with IPRoute(ext_ack=True) as route:
        state = qdisc.read_nic(route, nic)
        if state.qdisc != QDISC_KIND:
            click.echo(f"{state.name} is not bound.")
            return
        qdisc.remove_qdisc(route, state)
    click.echo(f"{state.name} is no longer bound.")


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
        raise UnknownNameError(f"there is no {what} {name!r} here") from None
    if number > _MAX_ID:
        raise UnknownNameError(f"no {what} has the number {number}: {_MAX_ID} is the largest")
    return number


def _require_net_admin(command: str) -> None:
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if effective is None or not int(effective.group(1), 16) >> _CAP_NET_ADMIN & 1:
        raise MissingRightError(f"only root may {command} a NIC: run it with sudo")
