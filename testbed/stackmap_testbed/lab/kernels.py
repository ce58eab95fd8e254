"""Find Debian's stock kernels on this machine, or one built by hand, and their modules."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from stackmap_testbed.lab.checkout import CHECKOUT
from stackmap_testbed.lab.errors import MissingToolError

_PACKAGES = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}
_SERIES = re.compile(r"\d+\.\d+")
_OWN_MODULES = CHECKOUT / "build" / "kmod"


@dataclass(frozen=True)
class Kernel:
    """One installed kernel: its release, its image and where its modules are."""

    release: str
    image: Path
    modules: Path


def find_kernel(
    name: str, *, boot: Path = Path("/boot"), lib: Path = Path("/lib/modules")
) -> Kernel:
    """Return the newest installed cloud kernel of a series, or exactly the release named.

    A directory, named with a slash in it, is one built by hand: its image is in the file
    ``image``, its modules in ``lib/modules/RELEASE``.

    Raises:
        MissingToolError: no such kernel is installed with its modules.
    """
    if "/" in name:
        return _kernel_of_directory(Path(name).resolve())
    pattern = f"vmlinuz-{name}[.-]*cloud-amd64" if _SERIES.fullmatch(name) else f"vmlinuz-{name}"
    found = []
    for image in boot.glob(pattern):
        release = image.name.removeprefix("vmlinuz-")
        modules = lib / release
        if (modules / "modules.dep").is_file():
            found.append(Kernel(release, image, modules))
    if not found:
        remedy = (
            f"install it with 'apt-get install {_PACKAGES[name]}'"
            if name in _PACKAGES
            else f"choose {' or '.join(_PACKAGES)}, or a release that is installed"
        )
        raise MissingToolError(
            f"no kernel {name} with its modules is installed under {boot} and {lib}: {remedy}"
        )
    return max(found, key=lambda kernel: _version_key(kernel.release))


def _kernel_of_directory(directory: Path) -> Kernel:
    lists = list(directory.glob("lib/modules/*/modules.dep"))
    if len(lists) != 1 or not (directory / "image").is_file():
        raise MissingToolError(f"no kernel is in {directory}: build it with 'make debug-kernel'")
    modules = lists[0].parent
    return Kernel(modules.name, directory / "image", modules)


def module_for(release: str, modules: Path = _OWN_MODULES) -> Path:
    """Return the project's module, built for a kernel release.

    Raises:
        MissingToolError: there is none.
    """
    path = modules / release / "stackmap.ko"
    if not path.is_file():
        raise MissingToolError(f"{path} does not exist: build it with `make kmod`")
    return path


def _version_key(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


class ModuleSet:
    """The modules of one kernel, found by name and ordered so that each finds its dependencies."""

    def __init__(self, kernel: Kernel) -> None:
        """Read the kernel's dependency and built-in lists."""
        self._root = kernel.modules
        self._paths: dict[str, str] = {}
        self._needs: dict[str, list[str]] = {}
        for line in (kernel.modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            self._paths[_module_name(path)] = path
            self._needs[path] = needs.split()
        builtin = (kernel.modules / "modules.builtin").read_text().split()
        self._builtin = {_module_name(path) for path in builtin}

    def load_order(self, names: list[str]) -> list[str]:
        """Return the paths to load for these modules, dependencies first, built-in ones left out.

        Raises:
            MissingToolError: the kernel has no such module at all.
        """
        order: dict[str, None] = {}
        for name in names:
            if name in self._builtin:
                continue
            if name not in self._paths:
                raise MissingToolError(
                    f"the kernel in {self._root} has no module {name}: install one of Debian's"
                )
            self._add(self._paths[name], order)
        return list(order)

    def _add(self, path: str, order: dict[str, None]) -> None:
        for need in self._needs[path]:
            if need not in order:
                self._add(need, order)
        order.setdefault(path)

    def read(self, path: str) -> bytes:
        """Return a module's code, decompressed, as the smallest of loaders wants it."""
        data = (self._root / path).read_bytes()
        return lzma.decompress(data) if path.endswith(".xz") else data


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")
