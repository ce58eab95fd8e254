"""``stackmap serve echo`` and ``stackmap serve http``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stackmap.errors import StackmapError

from .click_errors import SentenceCommand, examples
from .serve_options import (
    announce,
    backend_option,
    choose,
    listen_on,
    listen_option,
    model_option,
    nic_option,
    say,
)


@click.command(
    cls=SentenceCommand,
    epilog=examples(
        "stackmap serve echo",
        "stackmap serve echo --model actors --backend sockets --listen 127.0.0.1:7007",
    ),
)
@model_option("loop")
@backend_option
@listen_option("127.0.0.1:7007")
@nic_option
def echo(*, model: str, backend: str, listen: tuple[str, int], nic: str | None) -> None:
    """A server that sends back what it receives.

    It runs until SIGTERM or Ctrl-C; clients then get what they asked for, unless it is told so
    twice. The exit code is 0 if they did, 1 if some were cut off after 5 seconds.
    """
    port, reason = choose(backend, nic)
    with port, listen_on(listen) as listener:
        from stackmap.servers.echo import run_echo  # noqa: PLC0415 (asyncio takes a while)

        announce(backend, port, reason, listener)
        code = run_echo(model, port, listener)
        say("stopped")
    sys.exit(code)


@click.command(
    cls=SentenceCommand,
    epilog=examples(
        "stackmap serve http --root public",
        "sudo stackmap serve http --root public --listen 192.0.2.1:80 --nic eth1 --model loop",
    ),
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    metavar="FOLDER",
    help="The folder whose files are served.",
)
@model_option("service")
@backend_option
@listen_option("127.0.0.1:8080")
@nic_option
def http(*, root: Path, model: str, backend: str, listen: tuple[str, int], nic: str | None) -> None:
    """A server of a folder's files, by HTTP/1.1.

    It answers GET and HEAD, in a folder with its index.html, and 304 if the client has the latest
    version. Nothing outside of the folder is served, folders are not listed, and a file has at
    most 16 MB. It needs h11 (stackmap[codecs]).

    It runs until SIGTERM or Ctrl-C; clients then get what they asked for, unless it is told so
    twice. The exit code is 0 if they did, 1 if some were cut off after 5 seconds.
    """
    try:
        from stackmap.servers.files import Files  # noqa: PLC0415 (h11 may be missing)
        from stackmap.servers.http import run_http  # noqa: PLC0415
    except ImportError as error:
        raise StackmapError(str(error)) from error
    port, reason = choose(backend, nic)
    with port, listen_on(listen) as listener:
        announce(backend, port, reason, listener)
        code = run_http(model, port, listener, Files(root))
        say("stopped")
    sys.exit(code)
