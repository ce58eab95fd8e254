"""Runs a function of ``memcached.conformance`` in a guest; prints its result as JSON.

Arguments: the function's name, then its arguments: ``HOST:PORT`` or ``NAME=NUMBER``.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from stackmap_testbed.memcached import conformance


def main() -> None:
    function, *words = sys.argv[1:]
    addresses, numbers = [], {}
    for word in words:
        if "=" in word:
            name, number = word.split("=")
            numbers[name] = int(number)
        else:
            host, port = word.split(":")
            addresses.append((host, int(port)))
    result = getattr(conformance, function)(*addresses, **numbers)
    if dataclasses.is_dataclass(result):
        result = repr(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
