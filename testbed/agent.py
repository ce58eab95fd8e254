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
import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

Message = dict[str, Any]

_CHUNK = 64 * 1024
_FILE_CHUNK = 512 * 1024


class Child:
    """A running command, and which of its pipes are still open."""

    def __init__(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Track a process just started under the host's number for it."""
        self.number = number
        self.process = process
        self.open_pipes = 2
        self.input = bytearray()
        self.input_ended = False
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
                reply = {
                    "error": f"{error.strerror}: {error.filename}" if error.filename else str(error)
                }
            except ValueError as error:  # a NUL in an argument
                reply = {"error": str(error)}
            if reply is not None:
                self._send({"event": "reply", "request": request["request"], **reply})

    def _do_spawn(self, request: Message) -> Message:
        process = subprocess.Popen(
            request["argv"],
            env=request["env"],
            cwd=request["cwd"],
            stdin=subprocess.PIPE if request["stdin"] else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        child = Child(request["process"], process)
        self._children[process.pid] = child
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            assert pipe is not None
            self._selector.register(pipe.fileno(), selectors.EVENT_READ, (name, child))
        return {"pid": process.pid}

    def _do_stdin(self, request: Message) -> Message:
        """Queue input for a command; it is written as fast as the command reads."""
        for child in self._children.values():
            pipe = child.process.stdin
            if child.number != request["process"] or pipe is None or pipe.closed:
                continue
            if request["data"] is None:
                child.input_ended = True
            else:
                child.input += base64.b64decode(request["data"])
            if pipe.fileno() not in self._selector.get_map():
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe.fileno(), selectors.EVENT_WRITE, ("stdin", child))
        return {}

    def _write_input(self, child: Child) -> None:
        pipe = child.process.stdin
        assert pipe is not None
        try:
            del child.input[: os.write(pipe.fileno(), child.input)]
        except BrokenPipeError:
            child.input.clear()
            child.input_ended = True
        if not child.input:
            self._selector.unregister(pipe.fileno())
            if child.input_ended:
                pipe.close()

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
        data = os.read(fd, _CHUNK)
        if data:
            text = base64.b64encode(data).decode()
            self._send({"event": "output", "process": child.number, "stream": stream, "data": text})
            return
        self._selector.unregister(fd)
        child.open_pipes -= 1
        pipe = child.process.stdout if stream == "stdout" else child.process.stderr
        assert pipe is not None
        pipe.close()
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
        """Announce the end of output once the process is gone and its pipes are drained."""
        if child.status is None or child.open_pipes:
            return
        pipe = child.process.stdin
        if pipe is not None and not pipe.closed:
            if pipe.fileno() in self._selector.get_map():
                self._selector.unregister(pipe.fileno())
            pipe.close()
        del self._children[child.process.pid]
        self._send({"event": "closed", "process": child.number})


def open_port(name: str) -> int:
    """Open the virtio-serial port of this name, read and write."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return os.open(f"/dev/{entry.name}", os.O_RDWR | os.O_CLOEXEC)
    raise SystemExit(f"there is no virtio-serial port named {name}")


if __name__ == "__main__":
    Agent(open_port(sys.argv[1])).run()
