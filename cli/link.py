"""What the kernel says about a NIC, whether it may be bound, and the change that binds it.

The qdisc's options say who besides the administrator may open ports (SM_TCA_* in
``kmod/uapi/stackmap.h``).
"""

from __future__ import annotations

import errno
import grp
import pwd
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOOPBACK, IFF_UP
from pyroute2.netlink.rtnl.tcmsg import plugins

from stackmap._errors import StackmapError

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = "stackmap"
_MAIN_TABLE = 254


class NicError(StackmapError):
    """The NIC cannot be bound, or unbound, as it is."""


class QdiscOptions(nla):
    """The options of the module's qdisc."""

    nla_flags = NLA_F_NESTED
    prefix = "SM_TCA_"
    nla_map = (("SM_TCA_UNSPEC", "none"), ("SM_TCA_UID", "uint32"), ("SM_TCA_GID", "uint32"))


class _Plugin:
    """What pyroute2 wants to know about a kind of qdisc."""

    options = QdiscOptions

    @staticmethod
    def get_parameters(request: dict[str, Any]) -> Any:
        return request.get("options")


plugins[KIND] = _Plugin


@dataclass(frozen=True)
class Grants:
    """Who may open ports on a NIC besides the administrator, by number."""

    uid: int | None = None
    gid: int | None = None

    def __bool__(self) -> bool:
        return self.uid is not None or self.gid is not None

    def __str__(self) -> str:
        names = []
        if self.uid is not None:
            names.append(f"user {_name_of_user(self.uid)}")
        if self.gid is not None:
            names.append(f"group {_name_of_group(self.gid)}")
        return f"{' and '.join(names or ['only root'])} may open ports on it"


@dataclass(frozen=True)
class BoundNic:
    """A NIC with the module's qdisc at its root."""

    name: str
    index: int
    grants: Grants


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


def bound_nics(route: IPRoute) -> list[BoundNic]:
    """The NICs of this network namespace that are bound."""
    return [
        BoundNic(socket.if_indextoname(qdisc["index"]), qdisc["index"], _grants(qdisc))
        for qdisc in route.get_qdiscs()
        if qdisc.get_attr("TCA_KIND") == KIND and qdisc["parent"] == TC_H_ROOT
    ]


def _grants(qdisc: Any) -> Grants:
    options = qdisc.get_attr("TCA_OPTIONS")
    if options is None:
        return Grants()
    return Grants(options.get_attr("SM_TCA_UID"), options.get_attr("SM_TCA_GID"))


def set_qdisc(route: IPRoute, nic: Nic, grants: Grants | None) -> None:
    """Put the module's qdisc at the root of the NIC, or change whom it lets open ports.

    Args:
        route: where to ask the kernel.
        nic: the NIC.
        grants: who may open ports, instead of whom an earlier call named; None to leave it.

    Raises:
        NicError: the kernel refuses.
    """
    request: dict[str, Any] = {"index": nic.index, "parent": TC_H_ROOT}
    if grants is not None:
        numbers = (("SM_TCA_UID", grants.uid), ("SM_TCA_GID", grants.gid))
        request["options"] = {"attrs": [pair for pair in numbers if pair[1] is not None]}
    try:
        route.tc("replace", KIND, **request)
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


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
