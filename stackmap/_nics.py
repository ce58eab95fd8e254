"""Read from rtnetlink which NICs are bound, and which users may open ports on them.

A NIC is bound while the module's qdisc is at its root.  The options of that qdisc (SM_TCA_* in
``kmod/uapi/stackmap.h``) name the user and the group that may open ports besides the administrator.
"""

from __future__ import annotations

import grp
import pwd
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The kind of the module's qdisc.
QDISC_KIND = "stackmap"


class QdiscOptions(nla):
    """The options of the module's qdisc."""

    nla_flags = NLA_F_NESTED
    prefix = "SM_TCA_"
    nla_map = (("SM_TCA_UNSPEC", "none"), ("SM_TCA_UID", "uint32"), ("SM_TCA_GID", "uint32"))


class _Plugin:
    """pyroute2's description of a kind of qdisc."""

    options = QdiscOptions

    @staticmethod
    def get_parameters(request: dict[str, Any]) -> Any:
        return request.get("options")


plugins[QDISC_KIND] = _Plugin


@dataclass(frozen=True)
class Grants:
    """The user and the group that may open ports on a NIC besides the administrator, by number."""

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


def bound_nics(route: IPRoute | None = None) -> list[BoundNic]:
    """The NICs of this network namespace that are bound.

    Args:
        route: where to ask the kernel; by default a socket that is closed afterwards.
    """
    if route is None:
        with IPRoute() as own:
            return bound_nics(own)
    return [
        BoundNic(name, qdisc["index"], _grants(qdisc))
        for name, qdisc in root_qdiscs(route)
        if qdisc.get_attr("TCA_KIND") == QDISC_KIND
    ]


def root_qdiscs(route: IPRoute) -> Iterator[tuple[str, Any]]:
    """The root qdiscs of all NICs, with the NICs' names; NICs that go away meanwhile left out."""
    for qdisc in list(route.get_qdiscs()):
        if qdisc["parent"] == TC_H_ROOT:
            with suppress(OSError):
                yield socket.if_indextoname(qdisc["index"]), qdisc


def _grants(qdisc: Any) -> Grants:
    options = qdisc.get_attr("TCA_OPTIONS")
    if options is None:
        return Grants()
    return Grants(options.get_attr("SM_TCA_UID"), options.get_attr("SM_TCA_GID"))


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
