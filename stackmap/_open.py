"""Choosing a backend by name, and the NIC it runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, get_args

from ._device import DEVICE
from ._ring_port import RingPort, check_nic_name
from ._sockets import SocketPort
from .errors import BackendUnavailableError

if TYPE_CHECKING:
    from ._port import Port

Backend = Literal["auto", "stackmap", "sockets"]


def open_port(
    backend: Backend = "auto", nic: str | None = None, *, spin: float = 0.0
) -> Port:
    """Open a port; the caller closes it.

    Args:
        backend: ``"stackmap"`` for rings shared with the kernel module, ``"sockets"`` for ordinary
            sockets, ``"auto"`` for rings where they can be had and sockets otherwise.
        nic: the bound NIC whose rings to use; without it, the one NIC that is bound.
        spin: on rings, as of :class:`RingPort`; sockets do not spin.

    Raises:
        BackendUnavailableError: ``backend`` is ``"stackmap"``, and rings cannot be had.
        ValueError: ``backend`` is none of these, or ``nic`` cannot be the name of a NIC, or is
            given with ``"sockets"``, which use all NICs.
    """
    return choose_port(backend, nic, spin=spin)[0]


def choose_port(
    backend: Backend, nic: str | None, *, spin: float = 0.0
) -> tuple[Port, str]:
    """Like :func:`open_port`; also says, for people to read, why it is this backend.

    Raises:
        BackendUnavailableError, ValueError: as :func:`open_port`.
    """
    if backend not in get_args(Backend):
        names = ", ".join(repr(name) for name in get_args(Backend))
        raise ValueError(f"there is no backend {backend!r}: choose one of {names}")
    if nic is not None:
        check_nic_name(nic)
        if backend == "sockets":
            raise ValueError(f"sockets use all NICs: leave out nic={nic!r}, or ask for rings")
    if backend == "sockets":
        return SocketPort(), "as asked"
    try:
        return _open_rings(nic, spin)
    except BackendUnavailableError as reason:
        if backend == "stackmap":
            raise
        return SocketPort(), f"because {reason}"


def _open_rings(nic: str | None, spin: float) -> tuple[Port, str]:
    if not os.access(DEVICE, os.F_OK):
        raise BackendUnavailableError(
            f"{DEVICE} does not exist: load the kernel module (`stackmap bind NIC` does)"
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise BackendUnavailableError(
            f"you may not open {DEVICE}: run this as root, or give yourself access to it"
        )
    nic = _only_bound_nic() if nic is None else nic
    return RingPort(nic, spin=spin), f"on {nic}"


def _only_bound_nic() -> str:
    from ._nics import bound_nics  # noqa: PLC0415 (pyroute2 takes 0.3 s; sockets do not need it)

    nics = [nic.name for nic in bound_nics()]
    if not nics:
        raise BackendUnavailableError("no NIC is bound: run `stackmap bind NIC` first")
    if len(nics) > 1:
        raise BackendUnavailableError(
            f"more than one NIC is bound ({', '.join(sorted(nics))}): "
            "name one (nic=, --nic or STACKMAP_NIC)"
        )
    return nics[0]
