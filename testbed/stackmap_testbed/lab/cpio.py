"""Write a newc cpio archive, the format the kernel unpacks as its first root file system."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath


class CpioWriter:
    """Collects files in memory; the same input always gives the same bytes."""

    def __init__(self) -> None:
        """Start an empty archive."""
        self._parts: list[bytes] = []
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str) -> None:
        """Add a directory and, before it, the parents it needs."""
        for parent in [*reversed(PurePosixPath(path).parents), PurePosixPath(path)]:
            name = str(parent)
            if name not in (".", "/") and name not in self._directories:
                self._directories.add(name)
                self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file and the directories above it."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def finish(self) -> bytes:
        """Close the archive and return its bytes."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.lstrip("/").encode() + b"\0"
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [header, name, _pad(len(header) + len(name)), data, _pad(len(data))]


def _pad(length: int) -> bytes:
    return b"\0" * (-length % 4)
