"""Read a NIC's state over rtnetlink, judge whether it may be bound, and bind it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT

from stackmap.errors import StackmapError
from stackmap.inspect import QDISC_KIND, Grants, root_qdiscs

from .topology import read_topology

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Devices that hand their packets on to others, which have the queues to drivers; and how to call
#: one.
_MASTERS = {"bond": "a bond", "bridge": "a bridge", "team": "a team", "vrf": "a VRF"}
_STACKED = {
    **{kind: f"a {kind} device" for kind in ("ipvlan", "ipvtap", "macsec", "macvlan", "macvtap")},
    **{kind: f"a {kind} tunnel" for kind in ("bareudp", "erspan", "geneve", "gre", "gretap")},
    **{kind: f"a {kind} tunnel" for kind in ("ip6erspan", "ip6gre", "ip6gretap", "ip6tnl")},
    **{kind: f"a {kind} tunnel" for kind in ("ipip", "sit", "vti", "vti6", "vxlan", "wireguard")},
    "vlan": "a VLAN",
    "xfrm": "an IPsec interface",
}


class NicError(StackmapError):
    """The NIC cannot be bound, or unbound, as it is."""


@dataclass(frozen=True)
class Nic:
    """A NIC's state, as far as it matters for binding."""

    name: str
    index: int
    up: bool
    loopback: bool
    kind: str | None
    master: str | None
    #: The devices that its packets leave by, if it is not one with a driver itself.
    below: tuple[str, ...]
    qdisc: str
    configured: bool


def check_bindable(nic: Nic) -> None:
    """Check that the NIC has a queue to a driver, and that nobody else has set that.

    Raises:
        NicError: it has not, or somebody has.
    """
    if nic.loopback:
        raise NicError(
            f"{nic.name} is the loopback device and has no driver to send to: name a NIC"
        )
    if nic.kind in _MASTERS:
        raise NicError(_has_parts(nic, _MASTERS[nic.kind]))
    if nic.kind in _STACKED:
        what = f"{nic.name} is {_STACKED[nic.kind]} and has no queue to a driver"
        lower = _listed(nic.below, "or")
        raise NicError(
            f"{what}: bind {lower}, which its packets leave by"
            if lower
            else f"{what}: name the NIC that its packets leave by"
        )
    if not nic.up:
        raise NicError(f"{nic.name} is down: bring it up with 'ip link set {nic.name} up'")
    if nic.master is not None:
        raise NicError(
            f"{nic.name} is busy as a part of {nic.master}: "
            f"take it out with 'ip link set {nic.name} nomaster'"
        )
    if nic.configured:
        raise NicError(
            f"{nic.name} is busy: somebody set its queueing to {nic.qdisc}; "
            f"remove that with 'tc qdisc del dev {nic.name} root'"
        )


def _has_parts(nic: Nic, what: str) -> str:
    if not nic.below:
        return f"{nic.name} is {what} and has no queue to a driver: name a NIC"
    part = nic.below[0]
    return (
        f"{nic.name} is {what} of {_listed(nic.below, 'and')} and has no queue to a driver: "
        f"take one out with 'ip link set {part} nomaster' and bind that"
    )


def check_unused(nic: Nic, uses: Sequence[str]) -> None:
    """Check that the machine does not need the NIC itself; ``--force`` passes this over.

    Args:
        nic: the NIC.
        uses: what it carries, as :func:`.uses.uses_of` says it.

    Raises:
        NicError: it does.
    """
    if uses:
        raise NicError(
            f"{nic.name} carries {_listed(uses, 'and')}, and stackmap wants a NIC to itself: "
            f"name another, or insist with --force"
        )


def _listed(names: Sequence[str], conjunction: str) -> str:
    *first, last = names or ("",)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def read_nic(route: IPRoute, name: str) -> Nic:
    """Ask the kernel about a NIC, by its name or an alternative name.

    Raises:
        NicError: there is none of that name.
    """
    topology = read_topology(route)
    device = topology.find(name)
    if device is None:
        others = sorted(device.name for device in topology.devices.values())
        raise NicError(f"there is no NIC {name!r} here: name one of {', '.join(others)}")
    qdisc, configured = root_qdisc(route, device.index)
    master = topology.devices.get(device.master) if device.master is not None else None
    return Nic(
        name=device.name,
        index=device.index,
        up=device.up,
        loopback=device.loopback,
        kind=device.kind,
        master=master.name if master else None,
        below=tuple(lower.name for lower in topology.below(device)),
        qdisc=qdisc,
        configured=configured,
    )


def root_qdisc(route: IPRoute, index: int) -> tuple[str, bool]:
    """Return the kind of the root qdisc, and whether somebody chose it.

    The kernel's default has no handle; one that was configured has.
    """
    for qdisc in list(route.get_qdiscs(index)):
        if qdisc["parent"] == TC_H_ROOT:
            return qdisc.get_attr("TCA_KIND"), qdisc["handle"] != 0
    return "noqueue", False


def other_qdiscs(route: IPRoute) -> dict[str, str]:
    """The kinds of root qdiscs that somebody chose instead of the module's, by NIC."""
    return {
        name: qdisc.get_attr("TCA_KIND")
        for name, qdisc in root_qdiscs(route)
        if qdisc["handle"] and qdisc.get_attr("TCA_KIND") != QDISC_KIND
    }


def set_qdisc(route: IPRoute, nic: Nic, grants: Grants | None) -> None:
    """Put the module's qdisc at the root of the NIC, or change whom it lets open ports.

    Args:
        route: where to ask the kernel.
        nic: the NIC.
        grants: the users and groups that may open ports, in place of earlier ones; None: unchanged.

    Raises:
        NicError: the kernel refuses.
    """
    request: dict[str, Any] = {"index": nic.index, "parent": TC_H_ROOT}
    if grants is not None:
        numbers = (("SM_TCA_UID", grants.uid), ("SM_TCA_GID", grants.gid))
        request["options"] = {"attrs": [pair for pair in numbers if pair[1] is not None]}
    try:
        route.tc("replace", QDISC_KIND, **request)
    except NetlinkError as error:
        raise _refusal(nic, error) from error


def remove_qdisc(route: IPRoute, nic: Nic) -> None:
    """Take the module's qdisc away; the kernel puts its default there.

    Raises:
        NicError: the kernel refuses.
    """
    try:
        route.tc("del", index=nic.index, parent=TC_H_ROOT)
    except NetlinkError as error:
        raise _refusal(nic, error) from error


def _refusal(nic: Nic, error: NetlinkError) -> NicError:
    reason = str(error.args[1])
    if error.code == errno.ENOENT:
        reason = f"the loaded module has no qdisc {QDISC_KIND!r}: unload it and load the project's"
    return NicError(f"the kernel does not change the queueing of {nic.name}: {reason}")
