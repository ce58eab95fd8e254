"""The server on rings held to memcached, from another host; and where its bytes travelled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.comparison.experiment import Plan, serving
from stackmap_testbed.lab.addresses import CLIENT_ADDRESS, SERVER_ADDRESS
from stackmap_testbed.memcached.conformance import (
    memccapable_outcomes,
    missing_programs,
    oracle,
    pymemcache_outcomes,
)
from tests.lab.captures import transmissions
from tests.lab.hosts import start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab

PORT = 11211
OURS = f"{SERVER_ADDRESS}:{PORT}"
THEIRS = f"{SERVER_ADDRESS}:{PORT + 1}"
PATIENCE = 300.0

pytestmark = [
    pytest.mark.first_kernel,
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
    ),
]


def ask(lab: Lab, program: str, *arguments: str | int) -> Any:
    """Run a program on the client; what it printed."""
    process = start(lab.client, program, *arguments)
    process.close_input()
    assert process.wait(PATIENCE) == 0, process.output()
    return json.loads(process.stdout)


def path(lab: Lab) -> dict[str, int]:
    """The running server's own and the module's counters."""
    stats = ask(lab, "memcached_client", OURS, "stats", "stackmap")
    assert stats["backend"] == "stackmap"
    own = {name: value for name, value in stats.items() if name.startswith("stackmap_")}
    return {name.removeprefix("stackmap_"): int(value) for name, value in own.items()}


@pytest.fixture(autouse=True)
def ours(lab: Lab, rings: None) -> Iterator[None]:
    """Our server on rings, of which every byte must have gone through them in the end."""
    with serving(lab.server, Plan(SERVER_ADDRESS, port=PORT), "stackmap"):
        yield
        lab.wire.clear()
        counters = path(lab)
    print(", ".join(f"{name} {counters[name]}" for name in counters if "bytes" in name))
    assert (counters["socket_rx_bytes"], counters["socket_tx_bytes"]) == (0, 0)
    assert counters["rx_bytes"] > 1000
    assert counters["tx_bytes"] > 1000
    assert counters["slots_sent"] > 0
    assert counters["bad_slots"] == counters["bad_rings"] == 0


@pytest.fixture
def theirs(lab: Lab) -> Iterator[None]:
    """Debian's memcached on the same host."""
    process = lab.server.popen(
        [
            "memcached", "-u", "nobody", "-l", SERVER_ADDRESS, "-p", str(PORT + 1), "-U", "0",
            "-o", "no_lru_maintainer,no_lru_crawler",
        ]
    )  # fmt: skip
    ask(lab, "conformance", "wait_for_listener", THEIRS)
    yield
    process.kill()
    process.wait(PATIENCE)


@pytest.mark.long
def test_pymemcache(lab: Lab) -> None:
    with oracle() as here:
        expected = pymemcache_outcomes(here)
    assert list(expected.values()).count("passed") >= 100
    assert ask(lab, "conformance", "pymemcache_outcomes", OURS) == expected
    print(f"{list(expected.values()).count('passed')} of {len(expected)} passed on both")


def test_memccapable(lab: Lab) -> None:
    with oracle() as here:
        expected = memccapable_outcomes(here)
    assert list(expected.values()).count("pass") >= 27
    assert ask(lab, "conformance", "memccapable_outcomes", OURS) == expected


def test_values_of_all_sizes(lab: Lab, tmp_path: Path) -> None:
    sent, _delivered = lab.wire.capture(tmp_path / "values")
    assert ask(lab, "memcached_client", OURS, "values", 60) == 60
    counters = path(lab)
    lab.wire.stop_capture()
    # The module's counts against what was seen on the wire.
    assert counters["rx_bytes"] == transmissions(sent, CLIENT_ADDRESS, PORT).bytes
    last_answer = transmissions(sent, SERVER_ADDRESS, PORT).bytes - counters["tx_bytes"]
    assert 0 < last_answer < 2000
    assert counters["tx_bytes"] > 1_400_000


@pytest.mark.long
@pytest.mark.usefixtures("theirs")
def test_the_same_conversation_on_a_bad_wire(lab: Lab) -> None:
    lab.wire.configure(loss=0.02, reorder=0.1, duplicate=0.02, seed=8)
    difference = ask(lab, "conformance", "first_difference", OURS, THEIRS, "seed=4", "count=250")
    assert difference is None
    assert ask(lab, "memcached_client", OURS, "values", 30) == 30
    assert lab.wire.stats()["to-client"]["dropped"] > 0
