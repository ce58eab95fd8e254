"""Help of the commands, and shell completion."""

from __future__ import annotations

import os
import pwd
import socket
from typing import TYPE_CHECKING

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from stackmap_cli.click_errors import SentenceCommand
from stackmap_cli.main import main
from stackmap_testbed.lab.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def inner(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        yield name, command


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, one in inner(command):
            yield from commands(one, *path, name)


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_help_is_whole(path: tuple[str, ...]) -> None:
    short, long = (CliRunner().invoke(main, [*path, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output == long.output
    listed = short.output.partition("\nCommands:\n")[2]
    assert "..." not in listed
    assert "Examples:\n    " in short.output


def leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for _name, one in inner(command):
            yield from leaves(one)
    else:
        yield command


def test_every_command_ends_with_a_sentence_if_it_fails() -> None:
    plain = [command.name for command in leaves(main) if not isinstance(command, SentenceCommand)]
    assert plain == []


def completed(words: str, incomplete: str) -> set[str]:
    complete = BashComplete(main, {}, "stackmap", "_STACKMAP_COMPLETE")
    return {item.value for item in complete.get_completions(words.split(), incomplete)}


def test_nics_users_and_hosts_are_completed() -> None:
    nics = {name for _index, name in socket.if_nameindex()}
    assert completed("bind", "") == nics
    assert completed("serve memcached --nic", "") == nics
    assert completed("unbind", "l") == {name for name in nics if name.startswith("l")}
    assert completed("bind eth0 --user", "") == {user.pw_name for user in pwd.getpwall()}
    assert "root" in completed("bind eth0 --group", "ro")
    assert completed("lab exec", "") == {"server", "client"}
    assert completed("lab", "sh") == {"shell"}


def test_labs_that_are_up_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Session("mine").claim(), Session("yours").claim():
        assert completed("lab exec --name", "") == {"mine", "yours"}
    assert completed("lab exec --name", "") == set()


def test_a_host_cannot_have_more_memory_than_this_machine() -> None:
    refused = CliRunner().invoke(main, ["lab", "up", "--memory", "100000000"])
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert refused.exit_code == 2
    assert f"this machine has {own} MB itself" in refused.output
