"""A lab that stays up between commands: the process that holds it, and its answers.

``stackmap lab up`` starts this module as a process of its own.  It holds a lock
for as long as it lives, so whether a lab is up is a question to the kernel and
not to a file that a crash leaves behind.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from stackmap.errors import StackmapError
from stackmap_testbed.lab.errors import CommandStartError, LabError
from stackmap_testbed.lab.lab import Lab
from stackmap_testbed.lab.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from stackmap_testbed.lab.process import GuestProcess

Message = dict[str, Any]

_OUTPUT_SECONDS = 1.0
#: Bytes of input that may wait in a guest, so that a command that does not read fills no memory.
_INPUT_WAITING = 256 * 1024


class Background:
    """Boots a lab, reports how that goes on standard output, then serves its control socket."""

    def __init__(self, session: Session, settings: Message) -> None:
        """Hold the lab of this session; ``settings`` are what ``lab up`` was asked for."""
        self._session = session
        self._settings = settings
        self._stop = threading.Event()

    def run(self) -> None:
        """Hold the lab until it is asked for its end."""
        with self._session.claim():
            settings = self._settings
            lab = Lab(
                kernel=settings["kernel"],
                wire=settings["wire"],
                cpus=settings["cpus"],
                memory=settings["memory"],
                workdir=self._session.directory,
            )
            with self._listen() as listener, lab.up(_report_progress):
                if settings["impairment"]:
                    lab.wire.configure(**settings["impairment"])
                threading.Thread(target=self._accept, args=(listener, lab), daemon=True).start()
                _report({"up": True})
                _detach_output(self._session.log)
                self._stop.wait()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._session.control))
        listener.listen()
        return listener

    def _accept(self, listener: socket.socket, lab: Lab) -> None:
        with contextlib.suppress(OSError):  # the listener is closed when the lab goes down
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection, lab), daemon=True).start()

    def _serve(self, connection: socket.socket, lab: Lab) -> None:
        """Obey the one command of a connection."""
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            line = lines.readline()
            if not line:
                return
            try:
                self._obey(json.loads(line), connection, lines, lab)
            except StackmapError as error:
                _send(connection, {"error": str(error)})

    def _obey(self, command: Message, connection: socket.socket, lines: BinaryIO, lab: Lab) -> None:
        if command["do"] == "status":
            _send(connection, {**self._settings, **describe(lab)})
        elif command["do"] == "exec":
            _execute(command, connection, lines, lab)
        elif command["do"] == "down":
            self._stop.set()
        else:
            raise LabError(f"the lab knows no command {command['do']!r}")


def _execute(command: Message, connection: socket.socket, lines: BinaryIO, lab: Lab) -> None:
    """Run a command in a guest, with input from ``lines`` and its output to ``connection``.

    What goes both ways is said in :class:`.foreground.Foreground`.
    """
    window = command["terminal"]
    try:
        process = lab.guests[command["guest"]].popen(
            command["argv"],
            cwd=command["cwd"],
            env=command["env"],
            stdin=True,
            terminal=tuple(window) if window else None,
        )
    except CommandStartError as error:
        _send(connection, {"failed": str(error), "status": error.status})
        return
    end = signal.SIGHUP if window else signal.SIGKILL
    feeder = threading.Thread(target=_feed, args=(process, lines, end), daemon=True)
    feeder.start()
    seen: dict[str, int] = {}
    try:
        while feeder.is_alive() and not (process.finished and not process.unread(seen)):
            fresh = process.next_output(seen, _OUTPUT_SECONDS)
            output = {name: base64.b64encode(data).decode() for name, data in fresh.items() if data}
            if output:
                _send(connection, {"output": output})
        if process.finished:
            _send(connection, {"status": process.wait()})
    finally:
        connection.shutdown(socket.SHUT_RDWR)  # ends the feeder
        feeder.join()


def _feed(process: GuestProcess, lines: BinaryIO, end: signal.Signals) -> None:
    """Pass input on as fast as the command reads it; end the command if the client goes away."""
    with contextlib.suppress(LabError):  # the guest has ended
        for line in _whole_lines(lines):
            message = json.loads(line)
            if "window" in message:
                process.set_window(message["window"])
            elif message["input"] is None:
                process.close_input()
            else:
                process.send(base64.b64decode(message["input"]))
                process.wait_until_read(_INPUT_WAITING)
        if not process.finished:
            process.kill(end, group=True)


def _whole_lines(lines: BinaryIO) -> Iterator[bytes]:
    """The lines up to the end of the connection, which may cut one off."""
    with contextlib.suppress(OSError):
        yield from (line for line in lines if line.endswith(b"\n"))


def describe(lab: Lab) -> Message:
    """Return the state of a lab that is up, as ``stackmap lab status --json`` shows it."""
    guests = {
        name: {
            "alive": guest.alive,
            "address": guest.address,
            "pid": guest.pid,
            "console": str(guest.console),
        }
        for name, guest in lab.guests.items()
    }
    return {
        "up": True,
        "release": lab.release,
        "accel": lab.accel,
        "pid": os.getpid(),
        "guests": guests,
    }


def _send(connection: socket.socket, message: Message) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _report(message: Message) -> None:
    print(json.dumps(message), flush=True)


def _report_progress(text: str) -> None:
    _report({"progress": text})


def _detach_output(log: Path) -> None:
    """Let go of what leads to ``lab up``, which ends when this lab is ready."""
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def main(arguments: list[str]) -> None:
    """Hold the lab of this name with these settings (JSON)."""
    name, settings = arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        Background(Session(name), json.loads(settings)).run()
    except StackmapError as error:
        _report({"error": str(error)})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
