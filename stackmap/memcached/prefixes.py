"""Counters of keys by their prefix, which ``stats detail`` turns on."""

from __future__ import annotations

#: The end of a prefix.
DELIMITER = b":"
#: Prefixes that are counted at most, as clients choose them (memcached has no bound).
_MOST = 4096
_GET, _HIT, _SET, _DELETE = range(4)


class Prefixes:
    """How often keys were retrieved, found, stored and deleted, by the part before the ``:``.

    Attributes:
        on: whether the owner is to count.
    """

    def __init__(self) -> None:
        self.on = False
        self._counts: dict[bytes, list[int]] = {}

    def got(self, key: bytes, *, hit: bool) -> None:
        """A key was looked up."""
        self._count(key, _GET)
        if hit:
            self._count(key, _HIT)

    def set(self, key: bytes) -> None:
        """A value was sent for a key, be it stored or not."""
        self._count(key, _SET)

    def deleted(self, key: bytes) -> None:
        """A key was to be deleted."""
        self._count(key, _DELETE)

    def dump(self) -> bytes:
        """The reply to ``stats detail dump``."""
        lines = [
            b"PREFIX %b get %d hit %d set %d del %d\r\n" % (prefix, got, hit, stored, deleted)
            for prefix, (got, hit, stored, deleted) in self._counts.items()
        ]
        return b"".join(lines) + b"END\r\n"

    def clear(self) -> None:
        """Forget all prefixes."""
        self._counts.clear()

    def _count(self, key: bytes, what: int) -> None:
        prefix, delimiter, _rest = key.partition(DELIMITER)
        if delimiter:
            counts = self._counts.get(prefix)
            if counts is None:
                if len(self._counts) >= _MOST:
                    return
                counts = self._counts[prefix] = [0, 0, 0, 0]
            counts[what] += 1
