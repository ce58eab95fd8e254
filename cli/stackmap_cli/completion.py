"""Shell completion of arguments: existing NICs, users, groups and labs."""

from __future__ import annotations

import grp
import pwd
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click import Context, Parameter


def complete_nic(_context: Context, _parameter: Parameter, incomplete: str) -> list[str]:
    """NICs of this network namespace."""
    return _beginning_with(incomplete, (name for _index, name in socket.if_nameindex()))


def complete_user(_context: Context, _parameter: Parameter, incomplete: str) -> list[str]:
    """Users of this machine."""
    return _beginning_with(incomplete, (user.pw_name for user in pwd.getpwall()))


def complete_group(_context: Context, _parameter: Parameter, incomplete: str) -> list[str]:
    """Groups of this machine."""
    return _beginning_with(incomplete, (group.gr_name for group in grp.getgrall()))


def complete_lab(_context: Context, _parameter: Parameter, incomplete: str) -> list[str]:
    """Labs that are up."""
    from stackmap_testbed.lab.session import sessions  # noqa: PLC0415 (no other needs it)

    return _beginning_with(incomplete, (session.name for session in sessions()))


def _beginning_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
