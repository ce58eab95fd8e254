"""A client of a memcached server: ``values N``, ``stats WHAT``; the first argument is its address.

``values N`` stores N values of many sizes, up to the largest that memcached takes, and reads each
back, on several connections that take turns.
"""

from __future__ import annotations

import json
import random
import sys

from pymemcache.client.base import Client

_LARGEST = 1_048_000
_SIZES = [0, 1, 63, 500, 512, 513, 1400, 1460, 4095, 4096, 4097, 9000, 65535, 65536, 200_000]


def values(clients: list[Client], count: int) -> None:
    generator = random.Random(1)
    sizes = [_LARGEST, *_SIZES, *(generator.randrange(20_000) for _ in range(count))][:count]
    for i, size in enumerate(sizes):
        value = generator.randbytes(size)
        writer, reader = clients[i % len(clients)], clients[(i + 1) % len(clients)]
        assert writer.set(f"key-{i}", value, noreply=False)
        assert reader.get(f"key-{i}") == value, size
    print(json.dumps(len(sizes)))


def stats(client: Client, what: str) -> None:
    found = client.stats(what)
    print(json.dumps({name.decode(): _text(value) for name, value in found.items()}))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def main() -> None:
    address, command, argument = sys.argv[1:]
    clients = [Client(address, timeout=60, no_delay=True) for _ in range(4)]
    if command == "values":
        values(clients, int(argument))
    else:
        stats(clients[0], argument)


if __name__ == "__main__":
    main()
