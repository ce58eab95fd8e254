"""Write frames to a pcap file, with the time to the nanosecond, as they pass the wire."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC_NANOSECONDS = 0xA1B23C4D
_LINKTYPE_ETHERNET = 1
_SNAPLEN = 262144


class PcapWriter:
    """Appends frames to one capture file, each readable as soon as it is flushed."""

    def __init__(self, path: Path) -> None:
        """Create (or overwrite) the file and write its header."""
        self._file = path.open("wb", buffering=1 << 20)
        self._file.write(
            struct.pack("<IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET)
        )
        self.frames = 0

    def write(self, frame: bytes, nanoseconds: int) -> None:
        """Append one frame with the time it was seen, in nanoseconds since 1970."""
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        self._file.write(struct.pack("<IIII", seconds, rest, len(frame), len(frame)))
        self._file.write(frame)
        self.frames += 1

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()
