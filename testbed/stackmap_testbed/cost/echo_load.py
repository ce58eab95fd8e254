"""Load an echo server and mark the measured part for a counter of instructions.

``python -m stackmap_testbed.cost.echo_load ADDRESS PORT REQUESTS CONNECTIONS[/WINDOW]...``

Keeps one message outstanding on each of so many connections, for one number of connections after
the other; with a window, on so many of them at a time, in turn.  Once the server is warm, a marker
is executed at both ends of ``REQUESTS`` messages.  Prints one line of JSON for each.
"""

from __future__ import annotations

import json
import random
import sys
from array import array

from stackmap_testbed.load.generator import Exchange, Load, connected, mark

MESSAGE_BYTES = 64
_MESSAGES = 16
_PATIENCE = 30.0


def _messages() -> list[Exchange]:
    chance = random.Random(MESSAGE_BYTES)
    return [Exchange(text, text) for text in (chance.randbytes(64) for _ in range(_MESSAGES))]


def measure(
    address: str, port: int, requests: int, connections: int, window: int | None
) -> dict[str, int]:
    """Warm up with as many messages as are then measured.

    Raises:
        OSError: the server cannot be reached.
    """
    with connected(address, port, connections, _PATIENCE) as fds:
        load = Load(fds, _messages(), array("I", range(_MESSAGES)), window=window)
        load.run(None, requests, record=False)
        mark()
        load.run(None, requests, record=True)
        mark()
        load.drain(_PATIENCE)
        result = load.result()
    return {
        "connections": connections,
        "requests": result.requests,
        "errors": result.wrong + result.lost + result.unanswered,
    }


if __name__ == "__main__":
    for words in sys.argv[4:]:
        number, _, window = words.partition("/")
        print(
            json.dumps(
                measure(
                    sys.argv[1],
                    int(sys.argv[2]),
                    int(sys.argv[3]),
                    int(number),
                    int(window) if window else None,
                )
            )
        )
