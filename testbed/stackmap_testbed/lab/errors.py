"""The lab's errors; the text of each is one sentence for a person."""

from __future__ import annotations

from stackmap.errors import StackmapError


class LabError(StackmapError):
    """The lab cannot be built or used here; ``str()`` says why and what to do."""


class MissingToolError(LabError):
    """A program or kernel the lab needs is not installed."""


class RefusalError(LabError):
    """A guest's agent could not do what it was asked for."""

    def __init__(self, do: str, message: str, code: int | None, file: str | None) -> None:
        """Keep the errno and the file that it is about, if there are any."""
        super().__init__(f"the guest could not do '{do}': {message}")
        self.errno = code
        self.file = file


class CommandStartError(LabError):
    """A guest could not start a command."""

    def __init__(self, message: str, status: int) -> None:
        """Keep the exit status that a shell would have: 127 if there is no such command, or 126."""
        super().__init__(message)
        self.status = status


class GuestDiedError(LabError):
    """The guest's machine ended (a panic, or QEMU was killed) while it was needed."""


class GuestTimeoutError(LabError):
    """Something in a guest did not finish in time: a hang, with what it had said so far."""


class GuestCommandError(LabError):
    """A command in a guest failed and the caller had asked for success."""


#: As long as what a kernel says of one bug, with its registers and call trace.
_REPORT_LINES = 60


class KernelLogError(LabError):
    """A guest's kernel reported a bug, a warning, a stall or a leak."""

    def __init__(self, guest: str, lines: list[str], log: list[str]) -> None:
        """Keep the offending lines; the message has them, and the log from the first one on."""
        first = log.index(lines[0])
        report = "\n".join(log[first : first + _REPORT_LINES])
        super().__init__(f"the kernel log of {guest} reports: " + " | ".join(lines) + "\n" + report)
        self.lines = lines
