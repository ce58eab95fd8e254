"""Process 1 of a guest: starts commands for the host and says how they went.

It speaks JSON lines over a virtio-serial port.  It runs as a plain script on
nothing but the standard library, so that it is up as soon as Python is, and it
reaps every orphan because it is process 1.  If it ever fails, the kernel panics
and the host sees the machine end: there is no state in which a guest is up and
silently deaf.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

Message = dict[str, Any]

_CHUNK = 64 * 1024
_FILE_CHUNK = 512 * 1024


class Child:
    """A running command, and what connects it: pipes, or the master side of a terminal."""

    def __init__(
        self, number: int, process: subprocess.Popen[bytes], stdin: int | None, outputs: int
    ) -> None:
        """Track a process just started under the host's number for it."""
        self.number = number
        self.process = process
        #: Where its input goes; None once that is closed.
        self.stdin = stdin
        self.input = bytearray()
        self.input_ended = False
        self.open_outputs = outputs
        self.status: int | None = None


class Agent:
    """The event loop between the port to the host and the commands it started."""

    def __init__(self, port: int) -> None:
        """Serve the host on this open port."""
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._pending = b""

    def run(self) -> None:
        """Serve until the machine is switched off."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_read, selectors.EVENT_READ, ("wake", None))
        self._selector.register(self._port, selectors.EVENT_READ, ("port", None))
        self._send({"event": "ready", "python": sys.version.split()[0]})
        while True:
            for key, _ in self._selector.select():
                # An earlier one may have closed this one.
                if self._selector.get_map().get(key.fd) is not key:
                    continue
                kind, detail = key.data
                if kind == "wake":
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                    self._reap()
                elif kind == "port":
                    self._read_requests()
                elif kind == "stdin":
                    self._write_input(detail)
                else:
                    self._read_output(key.fd, kind, detail)

    def _send(self, message: Message) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self._port, data) :]

    def _read_requests(self) -> None:
        self._pending += os.read(self._port, _CHUNK)
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            request: Message = json.loads(line)
            try:
                reply = getattr(self, "_do_" + request["do"])(request)
            except OSError as error:
                file = error.filename
                reply = {
                    "error": f"{error.strerror}: {file}" if file else str(error),
                    "errno": error.errno,
                    "file": file,
                }
            except ValueError as error:  # a NUL in an argument
                reply = {"error": str(error)}
            if reply is not None:
                self._send({"event": "reply", "request": request["request"], **reply})

    def _do_spawn(self, request: Message) -> Message:
        """Start a command on pipes, or on a terminal of its own with a window of this size."""
        window = request["terminal"]
        stdin: int | None
        if window:
            master, slave = os.openpty()
            _set_window(master, window)
            theirs, stdin, outputs = [slave] * 3, os.dup(master), {"stdout": master}
        else:
            if request["stdin"]:
                stdin_read, stdin = os.pipe()
            else:
                stdin_read, stdin = os.open(os.devnull, os.O_RDONLY), None
            stdout, stdout_write = os.pipe()
            stderr, stderr_write = os.pipe()
            theirs = [stdin_read, stdout_write, stderr_write]
            outputs = {"stdout": stdout, "stderr": stderr}
        try:
            process = subprocess.Popen(
                request["argv"],
                env=request["env"],
                cwd=request["cwd"],
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                start_new_session=True,
                preexec_fn=_take_terminal if window else None,  # noqa: PLW1509 (one thread)
            )
        except BaseException:
            for fd in [*outputs.values(), *([] if stdin is None else [stdin])]:
                os.close(fd)
            raise
        finally:
            for fd in set(theirs):
                os.close(fd)
        child = Child(request["process"], process, stdin, len(outputs))
        self._children[process.pid] = child
        if stdin is not None:
            os.set_blocking(stdin, False)
        for name, fd in outputs.items():
            self._selector.register(fd, selectors.EVENT_READ, (name, child))
        return {"pid": process.pid}

    def _child(self, number: int) -> Child | None:
        return next((c for c in self._children.values() if c.number == number), None)

    def _do_stdin(self, request: Message) -> Message:
        """Queue input for a command; it is written as fast as the command reads."""
        child = self._child(request["process"])
        if child is None:
            return {}
        if request["data"] is None:
            child.input_ended = True
        else:
            child.input += base64.b64decode(request["data"])
        if child.stdin is None:
            self._drop_input(child)
        elif child.stdin not in self._selector.get_map():
            self._selector.register(child.stdin, selectors.EVENT_WRITE, ("stdin", child))
        return {}

    def _write_input(self, child: Child) -> None:
        assert child.stdin is not None
        try:
            self._take_input(child, os.write(child.stdin, child.input))
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self._drop_input(child)
            child.input_ended = True
        if not child.input:
            self._selector.unregister(child.stdin)
            if child.input_ended:
                os.close(child.stdin)
                child.stdin = None

    def _take_input(self, child: Child, count: int) -> None:
        """Forget input that has been dealt with, and say so: the host may send more."""
        del child.input[:count]
        self._send({"event": "input", "process": child.number, "bytes": count})

    def _drop_input(self, child: Child) -> None:
        self._take_input(child, len(child.input))

    def _do_window(self, request: Message) -> Message:
        """Set the size of a command's terminal, which tells the programs in it."""
        child = self._child(request["process"])
        if child is not None and child.stdin is not None:
            _set_window(child.stdin, request["size"])
        return {}

    def _do_kill(self, request: Message) -> Message:
        send = os.killpg if request["group"] else os.kill
        with contextlib.suppress(ProcessLookupError):
            send(request["pid"], request["signal"])
        return {}

    def _do_put(self, request: Message) -> Message:
        with Path(request["path"]).open("ab" if request["append"] else "wb") as file:
            file.write(base64.b64decode(request["data"]))
        return {}

    def _do_get(self, request: Message) -> Message:
        with Path(request["path"]).open("rb") as file:
            file.seek(request["offset"])
            return {"data": base64.b64encode(file.read(_FILE_CHUNK)).decode()}

    def _do_kernel_log(self, request: Message) -> Message:
        """Return the kernel's records after a sequence number, as the kernel keeps them."""
        records: list[str] = []
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                try:
                    records.append(os.read(fd, 8192).decode(errors="replace"))
                except BlockingIOError:
                    break
                except BrokenPipeError:
                    continue  # the oldest records were overwritten meanwhile; the next read goes on
        finally:
            os.close(fd)
        after = request["after"]
        return {"records": [r for r in records if int(r.split(",", 2)[1]) > after]}

    def _read_output(self, fd: int, stream: str, child: Child) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            text = base64.b64encode(data).decode()
            self._send({"event": "output", "process": child.number, "stream": stream, "data": text})
            return
        self._selector.unregister(fd)
        os.close(fd)
        child.open_outputs -= 1
        self._finish_if_over(child)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.get(pid)
            if child is not None:
                child.status = os.waitstatus_to_exitcode(status)
                child.process.returncode = child.status
                self._send({"event": "exit", "process": child.number, "status": child.status})
                self._finish_if_over(child)

    def _finish_if_over(self, child: Child) -> None:
        """Announce the end of output once the process is gone and all it wrote has been read."""
        if child.status is None or child.open_outputs:
            return
        if child.stdin is not None:
            if child.stdin in self._selector.get_map():
                self._selector.unregister(child.stdin)
            os.close(child.stdin)
        del self._children[child.process.pid]
        self._send({"event": "closed", "process": child.number})


def _take_terminal() -> None:
    """Make standard input the terminal that controls this process's session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_window(terminal: int, size: tuple[int, int]) -> None:
    rows, columns = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def open_port(name: str) -> int:
    """Open the virtio-serial port of this name, read and write."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return os.open(f"/dev/{entry.name}", os.O_RDWR | os.O_CLOEXEC)
    raise SystemExit(f"there is no virtio-serial port named {name}")


if __name__ == "__main__":
    Agent(open_port(sys.argv[1])).run()
