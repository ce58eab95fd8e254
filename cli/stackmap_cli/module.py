"""Find the kernel module and load it, or say why this kernel cannot have it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import stackmap
from stackmap.errors import StackmapError

DEVICE = Path(stackmap.DEVICE)

_PACKAGE = Path(__file__).resolve().parent


class ModuleError(StackmapError):
    """The kernel module cannot be loaded here."""


def load_module(path: Path | None) -> None:
    """Load the module unless it is loaded: from ``path``, the installed one, or one built nearby.

    Raises:
        ModuleError: there is none for the running kernel, or the kernel refuses it.
    """
    if DEVICE.exists():
        return
    if path is None and _run("modprobe", "--quiet", "stackmap") is None:
        return
    found = path or _built_nearby()
    _check_built_for_this_kernel(found)
    refusal = _run("insmod", str(found))
    if refusal is not None:
        raise ModuleError(f"the kernel refuses {found}: {refusal}; see dmesg")


def _built_nearby() -> Path:
    release = os.uname().release
    # Not the current directory, nor what is beside an installed package: anybody may have put a
    # module there.
    checkouts = [_PACKAGE.parents[1]] if _PACKAGE.parent.name == "cli" else []
    folders = [
        checkout / part for checkout in checkouts for part in ("kmod", f"build/kmod/{release}")
    ]
    built = [module for folder in folders if (module := folder / "stackmap.ko").is_file()]
    for module in built:
        if _release_of(module) == release:
            return module
    if built:
        return built[0]
    headers = (
        ""
        if Path(f"/lib/modules/{release}/build").exists()
        else f" (first install linux-headers-{release})"
    )
    raise ModuleError(
        f"no stackmap.ko is installed or built for Linux {release}: "
        f"build it with 'make -C kmod'{headers}, or name it with --module"
    )


def _check_built_for_this_kernel(module: Path) -> None:
    if not module.is_file():
        raise ModuleError(f"{module} does not exist: build it with 'make -C kmod'")
    running, wanted = os.uname().release, _release_of(module)
    if wanted != running:
        raise ModuleError(
            f"wrong kernel: {module} was built for Linux {wanted} and this is {running}; "
            f"build it again with 'make -C kmod'"
        )


def _release_of(module: Path) -> str:
    """Return the kernel release a module was built for, as it says itself."""
    data = module.read_bytes()
    start = data.find(b"\0vermagic=")
    if start < 0:
        raise ModuleError(f"{module} is not a kernel module: name another with --module")
    return data[start + len(b"\0vermagic=") :].split(b" ", 1)[0].decode()


def _run(*command: str) -> str | None:
    """Run a command of kmod's; return None, or in words why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"{command[0]} is not installed (apt-get install kmod)"
    if done.returncode == 0:
        return None
    return done.stderr.strip().rpartition(": ")[2] or f"{command[0]} gave {done.returncode}"
