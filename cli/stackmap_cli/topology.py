"""The network devices of this namespace: which stand on which, and which routes leave by them."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import WireGuard
from pyroute2.netlink import NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOOPBACK, IFF_UP
from pyroute2.netlink.rtnl.rtmsg import rtmsg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyroute2 import IPRoute

_RTM_NEWNEXTHOP, _RTM_GETNEXTHOP = 104, 106
_RTN_UNICAST = 1
_FR_ACT_TO_TBL = 1
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

#: IFLA_LINK of these is the other end, not a device below.
_PAIRS = {"netkit", "veth", "vxcan"}
#: The attributes in which a tunnel says where it sends its packets.
_FAR_END = re.compile(r"_(REMOTE|GROUP)6?$")

#: No network of one's own has a prefix as short as these: a route to one stands for a default
#: route, together with others (0.0.0.0/1 and 128.0.0.0/1, or 2000::/3, as VPNs set them).
_SHORT_PREFIX = {socket.AF_INET: 7, socket.AF_INET6: 4}


@dataclass(frozen=True)
class Device:
    """A network device, as far as it matters for binding one."""

    index: int
    name: str
    altnames: tuple[str, ...] = ()
    #: The driver of a virtual device; None for most NICs.
    kind: str | None = None
    up: bool = True
    loopback: bool = False
    #: The bridge, bond, team or VRF that it is a part of.
    master: int | None = None
    #: Devices that its packets leave by.
    below: frozenset[int] = frozenset()
    #: The table of a VRF.
    table: int | None = None


@dataclass(frozen=True)
class WideRoute:
    """A default route, or one to so much of the address space that it stands for a part of one."""

    oif: int
    table: int
    #: In words.
    destination: str


@dataclass(frozen=True)
class Topology:
    """The devices of a network namespace, by index."""

    devices: Mapping[int, Device]

    def find(self, name: str) -> Device | None:
        """The device of this name or alternative name."""
        for device in self.devices.values():
            if name == device.name or name in device.altnames:
                return device
        return None

    def below(self, device: Device) -> list[Device]:
        """The devices that the packets of this one leave by: those below it and its parts."""
        parts = {other.index for other in self.devices.values() if other.master == device.index}
        return [self.devices[index] for index in sorted(parts | device.below)]

    def above(self, nic: Device) -> dict[int, tuple[str, ...]]:
        """The devices whose packets leave by this one, and through which others they come to it.

        Returns:
            The names of the devices on the way, the last one's own included, by index.  A NIC's
            own packets come through none.
        """
        ways: dict[int, tuple[str, ...]] = {nic.index: ()}
        queue = deque([nic.index])
        while queue:
            low = queue.popleft()
            for device in self.devices.values():
                if device.index not in ways and (
                    low in device.below or self.devices[low].master == device.index
                ):
                    ways[device.index] = (device.name, *ways[low])
                    queue.append(device.index)
        return ways


class _Route(rtmsg):  # type: ignore[misc]
    """A route with the attributes that pyroute2 does not know."""

    nla_map = (
        *rtmsg.nla_map,
        ("RTA_PAD", "none"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "be16"),
        ("RTA_DPORT", "be16"),
        ("RTA_NH_ID", "uint32"),
    )


class _Nexthop(nlmsg):  # type: ignore[misc]
    """A nexthop object (``struct nhmsg``), which routes name by number."""

    prefix = "NHA_"
    fields = (("family", "B"), ("scope", "B"), ("protocol", "B"), ("resvd", "B"), ("flags", "I"))
    nla_map = (
        ("NHA_UNSPEC", "none"),
        ("NHA_ID", "uint32"),
        ("NHA_GROUP", "cdata"),
        ("NHA_GROUP_TYPE", "uint16"),
        ("NHA_BLACKHOLE", "flag"),
        ("NHA_OIF", "uint32"),
    )


#: ``struct nexthop_grp``: the number of a member, its weight, and padding.
_GROUP_ENTRY = struct.Struct("=IBBH")


def read_topology(route: IPRoute) -> Topology:
    """Ask the kernel for the devices of this namespace."""
    return Topology({link["index"]: _device(route, link) for link in list(route.get_links())})


def _device(route: IPRoute, link: Any) -> Device:
    names = link.get_attr("IFLA_PROP_LIST")
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return Device(
        index=link["index"],
        name=link.get_attr("IFLA_IFNAME"),
        altnames=tuple(names.altnames()) if names else (),
        kind=kind,
        up=bool(link["flags"] & IFF_UP),
        loopback=bool(link["flags"] & IFF_LOOPBACK),
        master=link.get_attr("IFLA_MASTER"),
        below=frozenset(_below(route, link, kind, data)) - {0, link["index"]},
        table=data.get_attr("IFLA_VRF_TABLE") if kind == "vrf" and data else None,
    )


def _below(route: IPRoute, link: Any, kind: str | None, data: Any) -> Iterator[int]:
    """Indexes of what this device's packets leave by, its parts left out."""
    # With a namespace beside it, the index is one of there.
    if kind not in _PAIRS and link.get_attr("IFLA_LINK_NETNSID") is None:
        yield link.get_attr("IFLA_LINK") or 0
    ends: list[tuple[str, int | None]] = []
    for name, value in data["attrs"] if isinstance(data, nla) else ():
        if name == "IFLA_VXLAN_LINK":
            yield value
        elif _FAR_END.search(name) and not ipaddress.ip_address(value).is_unspecified:
            ends.append((value, None))
    if kind == "wireguard":
        ends += _wireguard_endpoints(link.get_attr("IFLA_IFNAME"))
    for address, mark in ends:
        hop = outgoing(route, address, mark=mark)
        if hop is not None:
            yield hop


def _wireguard_endpoints(name: str) -> Iterator[tuple[str, int | None]]:
    """Addresses of the peers, and the mark that packets to them have."""
    with suppress(NetlinkError), WireGuard() as wireguard:  # it may go away meanwhile
        for part in list(wireguard.info(name)):
            mark = part.get_attr("WGDEVICE_A_FWMARK") or None
            for peer in part.get_attr("WGDEVICE_A_PEERS") or ():
                endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
                if endpoint:
                    yield endpoint["addr"], mark


def outgoing(
    route: IPRoute,
    address: str,
    *,
    source: str | None = None,
    mark: int | None = None,
    oif: int | None = None,
) -> int | None:
    """The index of the device by which a packet to an address leaves; None if none does."""
    given = {"src": source, "mark": mark, "oif": oif}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        (found,) = route.route("get", dst=address, **chosen)
    except NetlinkError:
        return None
    index: int | None = found.get_attr("RTA_OIF")
    return index


def wide_routes(route: IPRoute, topology: Topology) -> list[WideRoute]:
    """The default routes, and parts of one, in all tables that a rule names."""
    hops = _nexthops()
    found = []
    for family in _FAMILIES:
        tables = _tables_in_use(route, family, topology)
        request = _Route()
        request["family"] = family
        for entry in _dump(request, RTM_GETROUTE, RTM_NEWROUTE):
            table = entry.get_attr("RTA_TABLE", entry["table"])
            if table in tables and entry["type"] == _RTN_UNICAST and _is_wide(entry):
                found += [
                    WideRoute(oif, table, _destination(entry))
                    for oif in sorted(set(_hops_of(entry, hops)))
                ]
    return found


def _tables_in_use(route: IPRoute, family: int, topology: Topology) -> set[int]:
    tables = set()
    for rule in list(route.get_rules(family=family)):
        if rule["action"] == _FR_ACT_TO_TBL:
            tables.add(rule.get_attr("FRA_TABLE", rule["table"]))
        if rule.get_attr("FRA_L3MDEV"):
            tables |= {vrf.table for vrf in topology.devices.values() if vrf.table is not None}
    return tables


def _is_wide(entry: Any) -> bool:
    if entry["dst_len"] > _SHORT_PREFIX[entry["family"]]:
        return False
    return not ipaddress.ip_network(_prefix(entry)).is_multicast


def _prefix(entry: Any) -> str:
    nothing = "::" if entry["family"] == socket.AF_INET6 else "0.0.0.0"
    return f"{entry.get_attr('RTA_DST', nothing)}/{entry['dst_len']}"


def _destination(entry: Any) -> str:
    if entry["dst_len"]:
        return f"the route to {_prefix(entry)}"
    return f"the {'IPv6 ' if entry['family'] == socket.AF_INET6 else ''}default route"


def _hops_of(entry: Any, hops: Mapping[int, frozenset[int]]) -> Iterator[int]:
    yield from hops.get(entry.get_attr("RTA_NH_ID"), ())
    yield from (hop["oif"] for hop in entry.get_attr("RTA_MULTIPATH") or ())
    if (index := entry.get_attr("RTA_OIF")) is not None:
        yield index


def _dump(request: nlmsg, ask: int, answer: int) -> list[Any]:
    """Dump from the kernel; returns its answers as messages of the request's class."""
    with NetlinkSocket(NETLINK_ROUTE) as sock:
        sock.bind()
        sock.asyncore.marshal.msg_map[answer] = type(request)
        return list(sock.nlm_request(request, ask, NLM_F_REQUEST | NLM_F_DUMP))


def _nexthops() -> dict[int, frozenset[int]]:
    """The devices by which nexthop objects send, by the numbers of these."""
    devices: dict[int, frozenset[int]] = {}
    groups: dict[int, list[int]] = {}
    for hop in _dump(_Nexthop(), _RTM_GETNEXTHOP, _RTM_NEWNEXTHOP):
        number = hop.get_attr("NHA_ID")
        group = hop.get_attr("NHA_GROUP")
        if group is not None:
            groups[number] = [entry[0] for entry in _GROUP_ENTRY.iter_unpack(group)]
        elif (index := hop.get_attr("NHA_OIF")) is not None:
            devices[number] = frozenset({index})
    for number, members in groups.items():
        devices[number] = frozenset().union(*(devices.get(member, ()) for member in members))
    return devices
