"""``stackmap lab``: two hosts and a wire between them, for trying things out."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal

import click

from stackmap_testbed.impairment import DIRECTIONS
from stackmap_testbed.session import Session
from stackmap_testbed.wire import Way, Wire

from .sentences import SentenceGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap_testbed.lab import Progress

_NAME = click.option(
    "--name", default="lab", show_default=True, help="Which lab, if you keep several."
)
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


@click.group(cls=SentenceGroup)
def lab() -> None:
    """Two hosts in QEMU with a wire of their own between them."""


@lab.command()
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
@click.option("--memory", type=click.IntRange(256), metavar="MB", help="Memory of each host.")
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
    """Boot the two hosts and leave them running."""
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
    click.echo(f"The lab is up: try 'stackmap lab exec{_name_option(name)} server -- uname -r'.")


@lab.command()
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print all there is to know, as JSON.")
def status(name: str, as_json: bool) -> None:
    """Say whether the lab is up and what it is."""
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


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@_NAME
@click.argument("guest", type=click.Choice(["server", "client"]))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, guest: str, command: tuple[str, ...]) -> None:
    """Run a command on a host, here in the same directory, and end with its exit code.

    Its standard input is empty.
    """
    for message in Session(name).execute(guest, list(command)):
        if "status" in message:
            code = message["status"]
            # A shell's convention for a command that a signal ended.
            sys.exit(code if code >= 0 else 128 - code)
        for stream, data in message["output"].items():
            click.echo(base64.b64decode(data), nl=False, err=stream == "stderr")


@lab.command()
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
    """Change the wire of a lab that is up, and print what it has done, as JSON."""
    with closing(Wire(Session(name).wire_control)) as control:
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


@lab.command()
@_NAME
def down(name: str) -> None:
    """Switch both hosts off."""
    click.echo("The lab is down." if Session(name).down() else "The lab was not up.")


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _name_option(name: str) -> str:
    return "" if name == "lab" else f" --name {name}"


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
