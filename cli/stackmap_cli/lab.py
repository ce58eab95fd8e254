"""``stackmap lab``: two hosts and a wire between them, for trying things out."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from stackmap_testbed.lab.errors import CommandStartError, LabError
from stackmap_testbed.lab.impairment import DIRECTIONS
from stackmap_testbed.lab.session import Session
from stackmap_testbed.lab.wire import Way, Wire

from .click_errors import HELP, SentenceGroup, examples
from .completion import complete_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap_testbed.lab.lab import Progress

_NAME = click.option(
    "--name",
    default="lab",
    show_default=True,
    shell_complete=complete_lab,
    help="Which lab, if you keep several.",
)
_GUEST = click.argument("guest", type=click.Choice(["server", "client"]))
#: Exit code of ``lab status`` for a lab that is down, as of ``systemctl status``.
_DOWN = 3
_PERCENT = click.FloatRange(0, 100)


_IMPAIRMENTS = (
    click.option("--loss", type=_PERCENT, metavar="PCT", help="Frames to lose, in percent."),
    click.option(
        "--delay", type=click.FloatRange(0), metavar="MS", help="Delay of each direction."
    ),
    click.option(
        "--reorder", type=_PERCENT, metavar="PCT", help="Frames that later ones overtake."
    ),
    click.option("--duplicate", type=_PERCENT, metavar="PCT", help="Frames to deliver twice."),
)


def _impairment_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_IMPAIRMENTS):
        command = option(command)
    return command


@click.group(
    cls=SentenceGroup,
    context_settings=HELP,
    epilog=examples(
        "stackmap lab up --loss 1 --delay 10",
        "stackmap lab exec server ip addr",
        "stackmap lab shell client",
        "stackmap lab down",
    ),
)
def lab() -> None:
    """Run two hosts in QEMU with a wire between them."""


def _memory(_context: click.Context, _parameter: click.Parameter, value: int | None) -> int | None:
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if value is not None and value > most:
        raise click.BadParameter(f"this machine has {most} MB itself")
    return value


@lab.command(
    epilog=examples(
        "sudo stackmap lab up",
        "sudo stackmap lab up --kernel 6.1 --loss 1 --delay 10 --name lossy",
    )
)
@_NAME
@click.option(
    "--kernel", default="6.12", show_default=True, help="Debian kernel: 6.1, 6.12 or a release."
)
@click.option(
    "--wire",
    type=click.Choice(["direct", "relay"]),
    help="A plain wire, or one that can be impaired.",
)
@_impairment_options
@click.option(
    "--cpus", type=click.IntRange(1), default=1, show_default=True, help="Processors of each host."
)
@click.option(
    "--memory",
    type=click.IntRange(256),
    callback=_memory,
    metavar="MB",
    help="Memory of each host.",
)
def up(
    *,
    name: str,
    kernel: str,
    wire: str | None,
    loss: float | None,
    delay: float | None,
    reorder: float | None,
    duplicate: float | None,
    cpus: int,
    memory: int | None,
) -> None:
    """Boot both hosts and leave them running."""
    asked = {
        "loss": _fraction(loss),
        "reorder": _fraction(reorder),
        "duplicate": _fraction(duplicate),
        "delay_ms": delay,
    }
    impairment = {key: value for key, value in asked.items() if value is not None}
    if impairment and wire == "direct":
        raise click.UsageError("a direct wire cannot be impaired: use --wire relay")
    settings = {
        "kernel": kernel,
        "wire": wire or ("relay" if impairment else "direct"),
        "cpus": cpus,
        "memory": memory,
        "impairment": impairment,
    }
    session = Session(name)
    with _progress() as progress:
        session.up(settings, progress)
    click.echo(f"The lab is up: try {session.command('shell server')}.")


@lab.command(epilog=examples("stackmap lab status", "stackmap lab status --json"))
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print all there is to know, as JSON.")
def status(name: str, as_json: bool) -> None:
    """Say whether the lab is up.

    The exit code is 0 if it is, 3 if it is down, and 1 if it is still booting or a host is dead.
    """
    state = Session(name).status()
    if as_json:
        click.echo(json.dumps(state, indent=2))
    elif not state["up"]:
        click.echo("down")
    else:
        click.echo(f"up: Linux {state['release']}, {state['accel'].upper()}, {state['wire']} wire")
        for guest, facts in state["guests"].items():
            health = "alive" if facts["alive"] else f"dead, see {facts['console']}"
            click.echo(f"{guest}: {facts['address']}, {health}")
    if not state["up"]:
        sys.exit(_DOWN)
    if not all(facts["alive"] for facts in state["guests"].values()):
        sys.exit(1)


@lab.command(
    "exec",
    # All words after the host belong to the command.
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "stackmap lab exec server ip addr",
        "stackmap lab exec client busybox ping -c 3 server",
        "stackmap lab exec server tcpdump -U -i eth0 -w - > eth0.pcap",
        "stackmap lab exec -t server top",
    ),
)
@_NAME
@click.option("-t", "--terminal", is_flag=True, help="Give the command a terminal, as top wants.")
@_GUEST
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, guest: str, command: tuple[str, ...], *, terminal: bool) -> None:
    """Run a command on a host.

    It runs in this directory, with this standard input (use </dev/null for none), and is killed
    if this command is.  The exit code is the command's: 128+N if signal N ended it, 127 if there
    is no such command, 126 if it cannot be run.
    """
    if terminal and not sys.stdin.isatty():
        raise click.UsageError("standard input is not a terminal: leave out --terminal")
    words = list(command[1:] if command[0] == "--" else command)
    if not words:
        raise click.UsageError("there is no command after --")
    _run(name, guest, words, terminal=terminal)


@lab.command(
    epilog=examples("stackmap lab shell server", "stackmap lab shell client < commands.sh")
)
@_NAME
@_GUEST
def shell(name: str, guest: str) -> None:
    """Run a shell on a host.

    If standard input is no terminal, the shell runs the commands in there.
    """
    _run(name, guest, ["bash"], terminal=sys.stdin.isatty())


def _run(name: str, guest: str, command: list[str], *, terminal: bool) -> NoReturn:
    try:
        code = Session(name).execute(guest, command, terminal=terminal)
    except CommandStartError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.status)
    # A shell's convention for a command that a signal ended.
    sys.exit(code if code >= 0 else 128 - code)


@lab.command(
    epilog=examples(
        "stackmap lab wire --loss 1 --delay 10",
        "stackmap lab wire --drop-acks to-server",
        "stackmap lab wire --clear",
    )
)
@_NAME
@_impairment_options
@click.option(
    "--drop-acks", type=click.Choice([*DIRECTIONS, "off"]), help="Withhold pure TCP ACKs."
)
@click.option(
    "--drop", type=click.Choice([*DIRECTIONS, "both", "off"]), help="Withhold all frames."
)
@click.option("--clear", is_flag=True, help="First make it a clean wire again.")
def wire(
    *,
    name: str,
    loss: float | None,
    delay: float | None,
    reorder: float | None,
    duplicate: float | None,
    drop_acks: Way | Literal["off"] | None,
    drop: Way | Literal["both", "off"] | None,
    clear: bool,
) -> None:
    """Impair the wire, and print its counters.

    The lab must be up, with --wire relay.  What is not named stays as it is; the output is JSON.
    """
    session = Session(name)
    state = session.status()
    if not state["up"]:
        raise LabError(session.is_down)
    if state["wire"] != "relay":
        raise LabError(
            f"the lab {name!r} has a direct wire, which cannot be impaired: "
            f"take it down and up again with --wire relay"
        )
    with closing(Wire(session.wire_control)) as control:
        if clear:
            control.clear()
        control.configure(
            loss=_fraction(loss),
            reorder=_fraction(reorder),
            duplicate=_fraction(duplicate),
            delay_ms=delay,
            drop_acks=drop_acks,
            drop=drop,
        )
        click.echo(json.dumps(control.stats(), indent=2))


@lab.command(epilog=examples("stackmap lab down"))
@_NAME
def down(name: str) -> None:
    """Switch both hosts off, and remove what the lab left."""
    click.echo("The lab is down." if Session(name).down() else "The lab was not up.")


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show how far it is: with a spinner on a terminal, in plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
        return
    from rich.console import Console  # noqa: PLC0415 (no other command needs it)

    console = Console(stderr=True)
    with console.status("starting") as spinner:

        def tell(text: str) -> None:
            console.print(text, highlight=False)
            spinner.update(text)

        yield tell
