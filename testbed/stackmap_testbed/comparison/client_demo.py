"""A real memcached client at work.

``python -m stackmap_testbed.comparison.client_demo --host H --port P``

Uses pymemcache as any application would, says what it did, and ends with status 1 if an answer
was not the right one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys

from pymemcache.client.base import Client

LARGE = 1024 * 1024
#: memcached's own limit of 1 MiB covers key and bookkeeping as well as the value.
_BOOKKEEPING = 1024


def large_value() -> bytes:
    """A MiB (but for what the server needs for itself) in which no two places look the same."""
    blocks = (hashlib.sha256(b"%d" % number).digest() for number in range(LARGE // 32))
    return b"".join(blocks)[:-_BOOKKEEPING]


def show(client: Client) -> bool:
    """Run through the commands, printing each; returns whether all was right."""
    right = True

    def check(text: str, answer: object, expected: object) -> None:
        nonlocal right
        right = right and answer == expected
        print(f"{text:<44} {'ok' if answer == expected else f'WRONG: {answer!r}'}", flush=True)

    large = large_value()
    check("set greeting", client.set("greeting", b"hello, rings", noreply=False), True)
    check("get greeting -> b'hello, rings'", client.get("greeting"), b"hello, rings")
    client.set("visits", "41", noreply=False)
    check("incr visits -> 42", client.incr("visits", 1), 42)
    many = {f"key{number}": b"value %d" % number for number in range(100)}
    check("set_many, 100 keys in one go", client.set_many(many, noreply=False), [])
    check("get_many, 100 keys in one go", client.get_many(list(many)), many)
    check(f"set large, {len(large)} bytes", client.set("large", large, noreply=False), True)
    check("get large, the same bytes", client.get("large") == large, True)
    check("delete greeting", client.delete("greeting", noreply=False), True)
    check("get greeting -> None", client.get("greeting"), None)
    return right


def main(argv: list[str] | None = None) -> int:
    """Connect and show."""
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.comparison.client_demo",
        description="Use a memcached server.",
    )
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=11211)
    args = parser.parse_args(argv)
    client = Client((args.host, args.port), timeout=60, connect_timeout=60)
    try:
        return 0 if show(client) else 1
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
