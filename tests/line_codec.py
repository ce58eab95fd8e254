"""A codec in the shape that actors and services take, of lines of text."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview


class LineError(ValueError):
    """A line is too long, or was cut off."""

    def __init__(self, message: str, reply: list[Buffer]) -> None:
        super().__init__(message)
        self.reply = reply


class LineCodec:
    """Lines of at most ``bound`` bytes that end with a newline."""

    def __init__(self, bound: int = 100) -> None:
        self._bound = bound
        self._data = bytearray()
        self._eof = False

    @property
    def held(self) -> int:
        return len(self._data)

    def receive(self, data: Buffer) -> None:
        self._data += data

    def receive_eof(self) -> None:
        self._eof = True

    def next_message(self) -> bytes | None:
        line, newline, _rest = self._data.partition(b"\n")
        if len(line) > self._bound:
            raise LineError("the line is too long", [b"too ", b"long\n"])
        if newline:
            del self._data[: len(line) + 1]
            return bytes(line)
        if self._eof and line:
            raise LineError("the last line is cut off", [])
        return None

    def send(self, message: Buffer) -> list[Buffer]:
        return [message, b"\n"]
