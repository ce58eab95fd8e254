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
from typing import TYPE_CHECKING, Any

from stackmap._errors import StackmapError

from .errors import LabError
from .lab import Lab
from .session import Session

if TYPE_CHECKING:
    from types import FrameType

Message = dict[str, Any]

_OUTPUT_SECONDS = 1.0


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
                _detach_output()
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
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                command = json.loads(line)
                try:
                    self._obey(command, connection, lab)
                except StackmapError as error:
                    _send(connection, {"error": str(error)})

    def _obey(self, command: Message, connection: socket.socket, lab: Lab) -> None:
        if command["do"] == "status":
            _send(connection, {**self._settings, **describe(lab)})
        elif command["do"] == "exec":
            self._execute(command, connection, lab)
        elif command["do"] == "down":
            self._stop.set()
        else:
            raise LabError(f"the lab knows no command {command['do']!r}")

    @staticmethod
    def _execute(command: Message, connection: socket.socket, lab: Lab) -> None:
        """Run a command in a guest; if the one who asked goes away, so does the command."""
        guest = lab.guests[command["guest"]]
        process = guest.popen(command["argv"], cwd=command["cwd"])
        seen: dict[str, int] = {}
        try:
            while not (process.finished and not process.unread(seen)):
                fresh = process.next_output(seen, _OUTPUT_SECONDS)
                output = {name: base64.b64encode(data).decode() for name, data in fresh.items()}
                _send(connection, {"output": output})
        except OSError:
            process.kill(group=True)
            raise
        _send(connection, {"status": process.wait()})


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


def _detach_output() -> None:
    """Let go of the pipe to ``lab up``, which ends when this lab is ready."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


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
