"""A guest's command in the foreground of this process: its streams, terminal and exit status."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any, NoReturn

from stackmap_testbed.lab.errors import CommandStartError, LabError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import FrameType

_CHUNK = 64 * 1024
#: Columns and rows of a terminal that does not know its size.
_USUAL_WINDOW = (24, 80)


def window_size() -> tuple[int, int]:
    """Rows and columns of the terminal that is standard input."""
    columns, rows = os.get_terminal_size(sys.stdin.fileno())
    return (rows, columns) if rows and columns else _USUAL_WINDOW


class Foreground:
    """Joins the standard streams of this process to a command that the lab runs.

    Each message is a line of JSON.  From the lab come ``output`` (base64, by stream) and at last
    ``status``, or else ``failed`` with a status, or ``error``.  There go ``input`` (base64, null
    for its end) and ``window`` (rows and columns).
    """

    def __init__(self, sock: socket.socket, *, terminal: bool, ended: str) -> None:
        """Follow the command behind this connection, which the caller closes.

        With ``terminal`` standard input is one, and every key is the command's.  ``ended`` is
        what to say if the lab goes away first.
        """
        self._sock = sock
        self._ended = ended
        self._terminal = terminal
        self._selector = selectors.PollSelector()  # epoll takes no regular files
        self._received = b""

    def run(self) -> int:
        """Run the command to its end and return its exit status, negative for a signal.

        Raises:
            CommandStartError: the guest cannot start it.
            LabError: it was cut off.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._selector)
            self._selector.register(self._sock, selectors.EVENT_READ, self._receive)
            self._forward_input()
            if self._terminal:
                self._selector.register(
                    stack.enter_context(_window_changes()), selectors.EVENT_READ, self._resize
                )
                stack.enter_context(_raw_terminal(sys.stdin.fileno()))
            while True:
                for key, _events in self._selector.select():
                    status: int | None = key.data(key.fd)
                    if status is not None:
                        return status

    def _forward_input(self) -> None:
        try:
            self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._send_input)
        except (AttributeError, OSError, ValueError):  # there is none
            self._send({"input": None})

    def _send_input(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        self._send({"input": base64.b64encode(data).decode() if data else None})
        if not data:
            self._selector.unregister(fd)

    def _resize(self, fd: int) -> None:
        os.read(fd, _CHUNK)
        self._send({"window": window_size()})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # the lab has ended, or the command has: what was received tells
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sys.stdin.fileno())

    def _receive(self, _fd: int) -> int | None:
        data = b""
        with contextlib.suppress(OSError):
            data = self._sock.recv(_CHUNK)
        if not data:
            raise LabError(self._ended)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                raise LabError(message["error"])
            if "failed" in message:
                raise CommandStartError(message["failed"], message["status"])
            if "status" in message:
                return int(message["status"])
            for name, text in message["output"].items():
                stream = sys.stdout if name == "stdout" else sys.stderr
                stream.buffer.write(base64.b64decode(text))
                stream.buffer.flush()
        return None


@contextlib.contextmanager
def _window_changes() -> Iterator[int]:
    """A descriptor that becomes readable when the terminal's size changes."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        os.close(read)
        os.close(write)


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Iterator[None]:
    """Have the terminal pass every key on, and put it back as it was, also when killed."""
    before = termios.tcgetattr(fd)
    killers = (signal.SIGTERM, signal.SIGHUP)
    try:
        for number in killers:
            signal.signal(number, _end)
        tty.setraw(fd, termios.TCSADRAIN)  # keeps what was typed ahead
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number in killers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
