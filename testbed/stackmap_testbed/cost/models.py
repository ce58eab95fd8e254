"""The cost of a request to the server, by event loop, model and layer.

``python -m stackmap_testbed.cost.models --out out/bench-models.json``

In one boot of a machine that counts its instructions (:mod:`stackmap_testbed.cost.counting`), and
in which the server has a processor of its own.  All that this processor executes is counted: the
program, the kernel, the NIC's interrupts, and its sleep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stackmap_testbed.cost.baseline import spread
from stackmap_testbed.cost.blocks import (
    EVENTS,
    PARTS,
    Ranges,
    Section,
    events,
    read_maps,
    read_symbols,
    split,
    total,
)
from stackmap_testbed.cost.counting import (
    ON_SERVER_PROCESSOR,
    SERVER_NIC,
    SERVER_PROCESSOR,
    VIRTIO,
    Counter,
)
from stackmap_testbed.cost.echo import (
    MEMORY,
    PORT,
    EchoError,
    Measured,
    add_nic_option,
    announced,
    command_line,
    load,
    machine,
    own_command,
    pattern,
    positive,
    running,
    write_figures,
)
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import find_kernel
from stackmap_testbed.lab.tuning import BUSY_USECS, tuning
from stackmap_testbed.lab.versions import versions

#: Of each repeat: twenty for each of the most connections, or the edges of batches show.
REQUESTS = 1280
#: How often each number of connections is measured: in which order connections and programs get
#: their turns settles differently each time they begin, and stays.
REPEATS = 3
CONNECTIONS = (1, 16, 64)
SIZES = (64, 1024)
#: How many connections keep a server busy where requests come in bursts, and how many to measure.
SATURATING = 256
REQUESTS_IN_BURSTS = 20 * SATURATING


@dataclasses.dataclass(frozen=True)
class Server:
    """One server to measure.

    Attributes:
        command: how it is started.
        rings: whether its NIC is bound.
        sizes: of messages, or of values, in bytes.
        connections: numbers of connections; ``"N/W"`` has requests under way on W of N.
        load: further options of the load.
        files: how many descriptors server and load may have, instead of the usual limit.
        tuned: whether its NIC is tuned for a server that polls busily.
    """

    command: Sequence[str]
    rings: bool = False
    sizes: Sequence[int] = (64,)
    connections: Sequence[int | str] = CONNECTIONS
    load: Sequence[str] = ()
    files: int | None = None
    tuned: bool = False


def _asyncio(loop: str, api: str) -> Server:
    command = own_command("echo_asyncio", SERVER_ADDRESS, PORT, loop, api, SERVER_NIC)
    return Server(command, loop == "rings", SIZES)


def _layers(kind: str, number: int) -> Server:
    command = own_command("echo_layers", SERVER_ADDRESS, PORT, SERVER_NIC, kind, number)
    return Server(command, rings=True, connections=(16,))


def _serve(protocol: str, model: str, options: Sequence[str] = (), *, rings: bool = True) -> Server:
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", protocol, "--model", model]
    command += ["--backend", "stackmap", "--nic", SERVER_NIC] if rings else ["--backend", "sockets"]
    return Server([*command, "--listen", f"{SERVER_ADDRESS}:{PORT}"], rings=rings, load=options)


def _serve_http(model: str) -> Server:
    server = _serve("http", model, ["--http"])
    # Of the files that the load asks for, with their sizes as names.
    files = "".join(f"head -c {size} /dev/zero > $root/{size}; " for size in server.sizes)
    script = f'root=$(mktemp -d); {files}exec "$@" --root $root'
    return dataclasses.replace(server, command=["/bin/sh", "-c", script, "-", *server.command])


def _debians_memcached() -> Server:
    command = ["memcached", "-u", "root", "-t", "1", "-l", SERVER_ADDRESS, "-p", str(PORT)]
    return Server(announced(command), load=("--memcached",))


SERVERS = {
    **{
        f"{loop} {api}": _asyncio(loop, api)
        for loop in ("asyncio", "uvloop", "rings", "sockets")
        for api in ("streams", "protocol")
    },
    "rings segments": _asyncio("rings", "segments"),
    "C epoll": Server(own_command("echo_c", SERVER_ADDRESS, PORT), False, SIZES),
    "C epoll tuned": Server(
        own_command("echo_c", SERVER_ADDRESS, PORT, "--busy", BUSY_USECS),
        sizes=SIZES,
        tuned=True,
    ),
    "C rings": Server(own_command("echo_c", SERVER_ADDRESS, PORT, SERVER_NIC), True, SIZES),
    "bare epoll": Server(own_command("echo_epoll", SERVER_ADDRESS, PORT), False, SIZES),
    "bare rings": Server(own_command("echo_rings", SERVER_ADDRESS, PORT, SERVER_NIC), True, SIZES),
    **{f"echo {model}": _serve("echo", model) for model in ("loop", "service", "actors")},
    **{f"http {model}": _serve_http(model) for model in ("loop", "service", "actors")},
    **{f"{number} filters": _layers("filters", number) for number in (0, 1, 5, 10)},
    **{f"{number} hops": _layers("hops", number) for number in (0, 2, 10)},
    **{
        f"memcached {model}": _serve("memcached", model, ["--memcached"])
        for model in ("loop", "service", "actors")
    },
    "memcached loop on sockets": _serve("memcached", "loop", ["--memcached"], rings=False),
    "Debian's memcached": _debians_memcached(),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Instructions per request on the server's processor, between two markers.

    Attributes:
        instructions: all.
        parts: the same by ``PARTS``, as :class:`Split` has them, and the following.
        sleeping: the kernel's that are idle or switch tasks.
        repetitions: further repetitions of string instructions, which are not in the others.
        client: of the other processor, for comparison.
        p99_us: the latency that 99 of 100 requests do not exceed, in microseconds of the guest.
        files: of user mode, by file.
        functions: of the kernel, by name.
        events: how often those of ``EVENTS`` that the NIC's driver shows happened on the server's
            processor, per request.
    """

    instructions: float
    parts: dict[str, float]
    sleeping: float
    repetitions: float
    client: float
    p99_us: float
    files: dict[str, float]
    functions: dict[str, float]
    events: dict[str, float]


@contextlib.contextmanager
def _tuned(guest: Guest, server: Server) -> Iterator[None]:
    if not server.tuned:
        yield
        return
    guest.run(tuning(SERVER_NIC, tuned=True))
    try:
        yield
    finally:
        guest.run(tuning(SERVER_NIC, tuned=False))


def kernel_symbols(guest: Guest) -> Ranges:
    """The functions of the guest's kernel, and of the modules that it has."""
    return read_symbols(guest.run(["grep", "-i", " [tw] ", "/proc/kallsyms"]).stdout)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A load between its markers.

    Attributes:
        measured: what it did.
        section: what all processors executed meanwhile.
        mapped: what the server has mapped.
    """

    measured: Measured
    section: Section
    mapped: Ranges

    def cost(self, processor: int, symbols: Ranges, nic: str) -> Cost:
        """The instructions of a processor, per request of the load.

        Args:
            processor: a server's.
            symbols: the kernel's functions.
            nic: the server's NIC.
        """

        def each(counts: dict[str, int]) -> dict[str, float]:
            return {name: count / self.measured.requests for name, count in counts.items()}

        found = split(self.section, processor, self.mapped, symbols)
        others = sum(block.executed for block in self.section if block.processor != processor)
        parts = each(found.parts)
        return Cost(
            sum(parts.values()),
            parts,
            found.sleeping / self.measured.requests,
            found.repetitions / self.measured.requests,
            others / self.measured.requests,
            self.measured.p99_ns / 1000,
            each(found.files),
            each(found.functions),
            each(events(self.section, processor, symbols, nic)),
        )


def loads(
    guest: Guest, counter: Counter, server: Server, repeats: int, requests: int = REQUESTS
) -> list[Loaded]:
    """Start a server, and load it with each size and number of connections.

    Raises:
        EchoError: a reply was missing or wrong, or processors' counts do not add up to the total.
    """
    limit = ("prlimit", f"--nofile={server.files}:{server.files}") if server.files else ()
    command = [*limit, *ON_SERVER_PROCESSOR, *server.command]
    with _tuned(guest, server), running(guest, command, rings=server.rings) as process:
        known = len(counter.marks())
        counter.sections()
        connections = [each for each in server.connections for _ in range(repeats)]
        options = ["--bytes", *map(str, server.sizes), *server.load]
        report = load(guest, requests, connections, *options, prefix=limit)
        mapped = read_maps(guest.run(["cat", f"/proc/{process.pid}/maps"]).stdout)
    marks, sections = counter.marks()[known:], counter.sections()
    if not len(marks) == len(sections) == 2 * len(report):
        raise EchoError(f"{len(marks)} markers were met for {len(report)} measurements")
    for start, end, section in zip(marks[::2], marks[1::2], sections[1::2], strict=True):
        if total(section) != end - start:
            raise EchoError(f"processors executed {total(section)} instructions of {end - start}")
    return [
        Loaded(measured, section, mapped)
        for measured, section in zip(report, sections[1::2], strict=True)
    ]


def measure(
    guest: Guest,
    counter: Counter,
    symbols: Ranges,
    server: Server,
    repeats: int,
    *,
    requests: int = REQUESTS,
    nic: str = VIRTIO,
) -> dict[tuple[int, int], list[Cost]]:
    """Start a server, load it, and find where its processor's instructions were.

    Returns:
        the cost of each repeat, by bytes and number of connections.

    Raises:
        EchoError: as :func:`loads` does.
    """
    costs: dict[tuple[int, int], list[Cost]] = {}
    for each in loads(guest, counter, server, repeats, requests):
        key = (each.measured.size, each.measured.connections)
        costs.setdefault(key, []).append(each.cost(SERVER_PROCESSOR, symbols, nic))
    return costs


def summary(costs: Sequence[Cost]) -> dict[str, Any]:
    """The repeat whose sum is the median, and how far all sums are apart.

    Not their mean: an interpreter that collects all garbage once costs several repeats' worth.
    """
    median = sorted(costs, key=lambda cost: cost.instructions)[len(costs) // 2]
    rounded: dict[str, Any] = {
        name: {key: round(number, 1) for key, number in value.items() if number >= 1}
        if isinstance(value, dict)
        else round(value)
        for name, value in dataclasses.asdict(median).items()
    }
    rounded["parts"] = {part: rounded["parts"].get(part, 0) for part in PARTS}
    rounded["events"] = {event: round(number, 3) for event, number in median.events.items()}
    return {**rounded, "spread": round(spread([cost.instructions for cost in costs]), 4)}


_HEADING = (
    f"{'server':20} {'bytes':5} connections"
    + "".join(f" {name:>9}" for name in ("all", *PARTS, "sleeping"))
    + "".join(f" {event:>10}" for event in EVENTS)
    + f" {'p99 us':>9} {'spread':>9}"
)


def row(name: str, size: int, connections: int, found: dict[str, Any]) -> str:
    """A line of the table: thousands of instructions, and events, per request."""
    numbers = [found["instructions"], *(found["parts"][part] for part in PARTS), found["sleeping"]]
    thousands = "".join(f" {number / 1000:9.2f}" for number in numbers)
    happened = "".join(
        f" {found['events'][event]:10.2f}" if event in found["events"] else f" {'-':>10}"
        for event in EVENTS
    )
    return (
        f"{name:20} {size:5} {connections:11}{thousands}{happened} {found['p99_us']:9.0f} "
        f"{found['spread']:9.1%}"
    )


def run(
    kernel_name: str,
    module: Path | None,
    servers: Mapping[str, Server],
    repeats: int,
    *,
    requests: int = REQUESTS,
    memory: int = MEMORY,
    bursts: bool = False,
    setup: Sequence[str] = (),
    nic: str = VIRTIO,
    boot: str = "",
) -> dict[str, Any]:
    """Boot the machine and measure servers, each of which has a name.

    Args:
        kernel_name: which kernel.
        module: the module's file; None for the one that ``make kmod`` built.
        servers: by name.
        repeats: how often each number of connections is measured anew.
        requests: how many are counted in each repeat, and sent before to warm up.
        memory: the machine's, in megabytes.
        bursts: whether requests come in bursts (:func:`counting_guest`), on so many connections,
            ``SATURATING``, that a server is always busy; then ``REQUESTS_IN_BURSTS`` are counted.
        setup: a command that prepares the machine further.
        nic: the server's NIC; see :func:`counting_guest`.
        boot: further words on the kernel's command line.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    if bursts:
        requests = REQUESTS_IN_BURSTS
        servers = {
            name: dataclasses.replace(
                server, connections=(SATURATING,), load=(*server.load, "--drain")
            )
            for name, server in servers.items()
        }
    kernel = find_kernel(kernel_name)
    figures: dict[str, Any] = {}
    begin = time.monotonic()
    print(f"what a request costs the server alone, Linux {kernel.release}")
    print(f"all to sleeping in thousands of instructions; {', '.join(EVENTS)} as they are")
    print(_HEADING)
    with machine(kernel, module, memory, bursts=bursts, nic=nic, boot=boot) as (guest, counter):
        if setup:
            guest.run(setup)
        symbols = kernel_symbols(guest)
        for name, server in servers.items():
            try:
                costs = measure(
                    guest, counter, symbols, server, repeats, requests=requests, nic=nic
                )
            except LabError as error:
                raise EchoError(f"{name}: {error}") from error
            for (size, connections), each in costs.items():
                found = summary(each)
                figures.setdefault(name, {}).setdefault(str(size), {})[str(connections)] = found
                line = row(name, size, connections, found)
                print(f"{line} {time.monotonic() - begin:6.0f} s", flush=True)
    return {"servers": figures, "requests": requests, "environment": versions(kernel.release)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures."""
    parser = command_line("models", __doc__, "out/bench-models.json")
    parser.add_argument(
        "--servers",
        type=pattern,
        default="",
        metavar="PATTERN",
        help="only those whose names have it in them, for instance '^rings|^uvloop'",
    )
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N")
    add_nic_option(parser)
    parser.add_argument(
        "--boot", default="", metavar="WORDS", help="further words on the kernel's command line"
    )
    parser.add_argument(
        "--setup",
        type=shlex.split,
        default=[],
        metavar="COMMAND",
        help="prepare the machine with this, for instance 'ethtool -K eth0 gro off'",
    )
    parser.add_argument(
        "--bursts",
        action="store_true",
        help=f"requests come in bursts, on {SATURATING} connections, instead of one by one",
    )
    args = parser.parse_args(argv)
    servers = {name: server for name, server in SERVERS.items() if args.servers.search(name)}
    if not servers:
        parser.error(f"no server's name has that pattern in it; there are {', '.join(SERVERS)}")
    try:
        figures = run(
            args.kernel,
            args.module,
            servers,
            args.repeats,
            bursts=args.bursts,
            setup=args.setup,
            nic=args.nic,
            boot=args.boot,
        )
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_figures(figures, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
