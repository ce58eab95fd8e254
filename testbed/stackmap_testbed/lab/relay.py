"""The wire itself: a process that carries frames between the guests and impairs them on request.

Each guest's NIC is one end of a pair of connected datagram sockets and this
process holds the other; a frame is a datagram.  It is told what to do over a
Unix socket in JSON lines (see ``wire.py`` for the commands).
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stackmap_testbed.lab.impairment import DIRECTIONS, Impairment
from stackmap_testbed.lab.pcap import PcapWriter

_MAX_FRAME = 128 * 1024
# A real wire is finite as well: past this the sender is made to wait, not to lose.
_MAX_QUEUE = 2000
_BATCH = 64


class Capture:
    """Two files: every frame as it was put on the wire, and every frame as it came off."""

    def __init__(self, path: Path) -> None:
        """Write ``path`` with ``.sent.pcap`` and ``.delivered.pcap`` added."""
        self.sent = PcapWriter(path.with_name(path.name + ".sent.pcap"))
        self.delivered = PcapWriter(path.with_name(path.name + ".delivered.pcap"))

    def close(self) -> dict[str, int]:
        """Finish both files and say how many frames each holds."""
        self.sent.close()
        self.delivered.close()
        return {"sent": self.sent.frames, "delivered": self.delivered.frames}


class Direction:
    """One way along the wire: from a source socket, through an impairment, to a target socket."""

    def __init__(self, source: socket.socket, target: socket.socket, seed: int) -> None:
        """Carry frames from one socket to the other."""
        self.source = source
        self.target = target
        self.impairment = Impairment(seed=seed)
        self.queue: deque[bytes] = deque()

    def receive(self, now: float, capture: Capture | None) -> None:
        """Take in what the sender has put on the wire."""
        for _ in range(_BATCH):
            try:
                frame = self.source.recv(_MAX_FRAME)
            except BlockingIOError:
                return
            except ConnectionError:
                return
            if not frame:
                return
            if capture is not None:
                capture.sent.write(frame, time.time_ns())
            self.impairment.submit(frame, now)

    def deliver(self, now: float, capture: Capture | None) -> None:
        """Hand over what has arrived, as far as the receiver takes it."""
        self.queue.extend(self.impairment.due(now))
        while self.queue:
            try:
                self.target.send(self.queue[0])
            except BlockingIOError:
                return
            except ConnectionError:
                self.queue.clear()  # that guest is gone: its end of the wire hangs loose
                return
            frame = self.queue.popleft()
            if capture is not None:
                capture.delivered.write(frame, time.time_ns())


class Relay:
    """Both directions, the control socket, and the loop that serves them."""

    def __init__(
        self, server: socket.socket, client: socket.socket, control: socket.socket
    ) -> None:
        """Join two datagram sockets; take commands from connections to ``control``."""
        for sock in (server, client, control):
            sock.setblocking(False)
        self._directions = {
            "to-server": Direction(client, server, seed=1),
            "to-client": Direction(server, client, seed=2),
        }
        self._control = control
        self._poll = select.poll()
        self._sessions: dict[int, tuple[socket.socket, bytearray]] = {}
        self._capture: Capture | None = None
        self._poll.register(control, select.POLLIN)
        self._poll.register(server, select.POLLIN)
        self._poll.register(client, select.POLLIN)

    def run(self) -> None:
        """Carry frames until told to stop."""
        directions = tuple(self._directions.values())
        while True:
            ready = dict(self._poll.poll(self._wait_milliseconds()))
            now = time.monotonic()
            for direction in directions:
                if ready.get(direction.source.fileno(), 0) & ~select.POLLOUT:
                    direction.receive(now, self._capture)
                direction.deliver(now, self._capture)
            for direction in directions:
                self._watch(direction)
            for fd in ready:
                if fd == self._control.fileno():
                    self._accept()
                elif fd in self._sessions and not self._serve(fd):
                    return

    def _wait_milliseconds(self) -> float | None:
        times = [t for d in self._directions.values() if (t := d.impairment.next_due()) is not None]
        return max(0.0, (min(times) - time.monotonic()) * 1000.0) if times else None

    def _watch(self, direction: Direction) -> None:
        """Wait for room in a receiver that is full, and do not hear a sender too far ahead."""
        opposite = next(d for d in self._directions.values() if d is not direction)
        # A socket is the source of one direction and the target of the other.
        events = select.POLLIN if len(direction.queue) < _MAX_QUEUE else 0
        events |= select.POLLOUT if opposite.queue else 0
        self._poll.modify(direction.source, events)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            session, _ = self._control.accept()
            self._sessions[session.fileno()] = (session, bytearray())
            self._poll.register(session, select.POLLIN)

    def _serve(self, fd: int) -> bool:
        """Answer the commands of one control connection; False when told to stop."""
        session, pending = self._sessions[fd]
        try:
            data = session.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._hang_up(fd)
            return True
        pending += data
        while (end := pending.find(b"\n")) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            command: dict[str, Any] = json.loads(line)
            if command["do"] == "stop":
                self._close_capture()
                return False
            try:
                answer = self._obey(command)
            except (OSError, TypeError, ValueError) as error:
                answer = {"error": str(error)}
            try:
                session.sendall(json.dumps(answer).encode() + b"\n")
            except ConnectionError:
                self._hang_up(fd)
                break
        return True

    def _hang_up(self, fd: int) -> None:
        """A client has disconnected; the wire stays."""
        self._poll.unregister(fd)
        session, _pending = self._sessions.pop(fd)
        session.close()

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "configure":
            return self._configure(command["directions"], command.get("seed"))
        if command["do"] == "capture":
            self._close_capture()
            self._capture = Capture(Path(command["path"]))
            return {}
        if command["do"] == "stop-capture":
            return self._close_capture()
        if command["do"] == "stats":
            return {name: self._state_of(direction) for name, direction in self._directions.items()}
        raise ValueError(f"the wire knows no command {command['do']!r}")

    def _configure(self, changes: dict[str, dict[str, Any]], seed: int | None) -> dict[str, Any]:
        for number, name in enumerate(DIRECTIONS):
            impairment = self._directions[name].impairment
            impairment.conditions = replace(impairment.conditions, **changes.get(name, {}))
            if seed is not None:
                impairment.reseed(seed * 2 + number)
        return {}

    def _close_capture(self) -> dict[str, int]:
        capture, self._capture = self._capture, None
        return capture.close() if capture is not None else {"sent": 0, "delivered": 0}

    @staticmethod
    def _state_of(direction: Direction) -> dict[str, Any]:
        impairment = direction.impairment
        return {
            **asdict(impairment.counters),
            "queued": len(direction.queue),
            "conditions": asdict(impairment.conditions),
        }


def main(arguments: list[str]) -> None:
    """Run on three inherited descriptors: the server's frames, the client's frames, control."""
    server, client, control = (socket.socket(fileno=int(number)) for number in arguments)
    Relay(server, client, control).run()


if __name__ == "__main__":
    main(sys.argv[1:])
