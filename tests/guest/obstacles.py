"""Rules and filters that may want packets between TCP and the NIC: put there for a while."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import TYPE_CHECKING

from tests.guest.commands import sh
from tests.guest.wire import NIC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


@contextlib.contextmanager
def set_and_unset(change: str, back: str) -> Iterator[None]:
    """Execute one command before, and another after."""
    sh(change)
    try:
        yield
    finally:
        sh(back)


@contextlib.contextmanager
def _table(family: str, rules: str) -> Iterator[None]:
    text = f"table {family} t {{ chain c {{ {rules}; }}; }}"
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    try:
        yield
    finally:
        sh(f"nft delete table {family} t")


def nftables(rules: str) -> AbstractContextManager[None]:
    """Have the rules of one chain, whose declaration comes first."""
    return _table("inet", rules)


def counted() -> int:
    """How many packets the rules of :func:`nftables` have counted."""
    command = ["nft", "list", "table", "inet", "t"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"packets (\d+)", listed.stdout)
    assert found is not None
    return int(found[1])


def device_rule(hook: str) -> AbstractContextManager[None]:
    """Have netfilter drop TCP's packets at the NIC's ``ingress`` or ``egress``."""
    chain = f'type filter hook {hook} device "{NIC}" priority 0; meta l4proto tcp counter drop'
    return _table("netdev", chain)


def tc_filter(hook: str, action: str) -> AbstractContextManager[None]:
    """Have tc do this with all packets at the NIC's ``ingress`` or ``egress``."""
    return set_and_unset(
        f"modprobe -aq sch_ingress cls_matchall act_gact; tc qdisc add dev {NIC} clsact;"
        f"tc filter add dev {NIC} {hook} matchall action {action}",
        f"tc qdisc del dev {NIC} clsact",
    )


def policy(source: str, destination: str, direction: str) -> AbstractContextManager[None]:
    """Have IPsec block TCP between two addresses, ``in`` or ``out``."""
    selector = f"src {source} dst {destination} proto tcp dir {direction}"
    return set_and_unset(
        f"modprobe -q xfrm_user; ip xfrm policy add {selector} action block",
        f"ip xfrm policy del {selector}",
    )
