"""What the kernel says about a NIC, whether it may be bound, and the change that binds it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOOPBACK, IFF_UP

from stackmap._errors import StackmapError

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = "stackmap"
_MAIN_TABLE = 254


class NicError(StackmapError):
    """The NIC cannot be bound, or unbound, as it is."""


@dataclass(frozen=True)
class Nic:
    """What the kernel says about a NIC that matters for binding it."""

    name: str
    index: int
    up: bool
    loopback: bool
    master: str | None
    qdisc: str
    configured: bool
    carries_default_route: bool


def check_bindable(nic: Nic, *, force: bool) -> None:
    """Check that nothing else uses the NIC in a way that binding would disturb.

    Raises:
        NicError: something does.
    """
    if nic.loopback:
        raise NicError(
            f"{nic.name} is the loopback device and has no driver to send to: name a NIC"
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
    if nic.carries_default_route and not force:
        raise NicError(
            f"{nic.name} carries the default route and stackmap wants a NIC to itself: "
            f"name another, or insist with --force"
        )


def read_nic(route: IPRoute, name: str) -> Nic:
    """Ask the kernel about a NIC.

    Raises:
        NicError: there is none of that name.
    """
    found = route.link_lookup(ifname=name)
    if not found:
        others = sorted(link.get_attr("IFLA_IFNAME") for link in route.get_links())
        raise NicError(f"there is no NIC {name} here: name one of {', '.join(others)}")
    index = found[0]
    link = route.get_links(index)[0]
    master = link.get_attr("IFLA_MASTER")
    qdisc, configured = _root_qdisc(route, index)
    return Nic(
        name=name,
        index=index,
        up=bool(link["flags"] & IFF_UP),
        loopback=bool(link["flags"] & IFF_LOOPBACK),
        master=None if master is None else route.get_links(master)[0].get_attr("IFLA_IFNAME"),
        qdisc=qdisc,
        configured=configured,
        carries_default_route=index in set(_default_route_nics(route)),
    )


def _root_qdisc(route: IPRoute, index: int) -> tuple[str, bool]:
    """Return the kind of the root qdisc, and whether somebody chose it.

    The kernel's default has no handle; one that was configured has.
    """
    for qdisc in route.get_qdiscs(index):
        if qdisc["parent"] == TC_H_ROOT:
            return qdisc.get_attr("TCA_KIND"), qdisc["handle"] != 0
    return "noqueue", False


def _default_route_nics(route: IPRoute) -> Iterator[int]:
    for entry in route.get_routes(table=_MAIN_TABLE):
        if entry["dst_len"] != 0:
            continue
        hops: list[Any] = entry.get_attr("RTA_MULTIPATH") or []
        yield from (hop["oif"] for hop in hops)
        if (index := entry.get_attr("RTA_OIF")) is not None:
            yield index


def set_qdisc(route: IPRoute, nic: Nic) -> None:
    """Put the module's qdisc at the root of the NIC.

    Raises:
        NicError: the kernel refuses.
    """
    try:
        route.tc("replace", KIND, index=nic.index, parent=TC_H_ROOT)
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
        reason = f"the loaded module has no qdisc {KIND!r}: unload it and load the project's"
    return NicError(f"the kernel does not change the queueing of {nic.name}: {reason}")
