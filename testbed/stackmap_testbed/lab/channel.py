"""The host's end of the conversation with a guest's agent: requests, replies and events."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

from stackmap_testbed.lab.errors import GuestDiedError, GuestTimeoutError, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, Any]


class Channel:
    """JSON lines over a connected socket, read by a thread of its own.

    Any number of threads may have a request outstanding.  When the other end
    goes away every one of them fails at once, and so does every later request.
    """

    def __init__(
        self, sock: socket.socket, on_event: Callable[[Message], None], status: Callable[[], str]
    ) -> None:
        """Talk over ``sock``; ``status`` tells, once the guest is gone, what it died of."""
        self._sock = sock
        self._on_event = on_event
        self._status = status
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._writing = threading.Lock()
        self._replies: dict[int, Message | None] = {}
        self._numbers = itertools.count(1)
        self._dead = False
        self._thread = threading.Thread(target=self._read, name="guest-channel", daemon=True)

    def start(self) -> None:
        """Begin to read what the guest says."""
        self._thread.start()

    @property
    def dead(self) -> bool:
        """Whether the other end has gone away."""
        return self._dead

    def request(self, do: str, timeout: float = 60.0, **fields: Any) -> Message:
        """Ask the agent to do one thing and return its reply.

        Raises:
            GuestDiedError: the guest ended before it answered.
            GuestTimeoutError: it did not answer in time.
            RefusalError: it answered that it could not.
        """
        number = next(self._numbers)
        with self._lock:
            self._replies[number] = None
        try:
            self._write({"do": do, "request": number, **fields})
            with self._changed:
                self._changed.wait_for(
                    lambda: self._dead or self._replies[number] is not None, timeout
                )
                reply = self._replies[number]
        finally:
            with self._lock:
                del self._replies[number]
        if reply is None:
            if self._dead:
                raise GuestDiedError(self._status())
            raise GuestTimeoutError(
                f"the guest's agent did not answer '{do}' within {timeout:g} s: {self._status()}"
            )
        if "error" in reply:
            raise RefusalError(do, reply["error"], reply.get("errno"), reply.get("file"))
        return reply

    def close(self) -> None:
        """Stop reading; the guest may go on or not."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._sock.close()

    def _write(self, message: Message) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._writing, contextlib.suppress(OSError):
            self._sock.sendall(data)

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._sock.makefile("rb") as lines:
            for line in lines:
                message: Message = json.loads(line)
                if message["event"] == "reply":
                    with self._changed:
                        if message["request"] in self._replies:
                            self._replies[message["request"]] = message
                            self._changed.notify_all()
                else:
                    self._on_event(message)
        with self._changed:
            self._dead = True
            self._changed.notify_all()
        self._on_event({"event": "dead"})
