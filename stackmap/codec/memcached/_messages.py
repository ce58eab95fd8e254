"""Requests and replies of memcached's text protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from .flags import Flags, Token

if TYPE_CHECKING:
    from stackmap.codec._codec import Buffer

StoreVerb = Literal["set", "add", "replace", "append", "prepend", "cas"]
MetaCode = Literal["HD", "VA", "EN", "NF", "NS", "EX", "MN"]

# -- requests --


@dataclass(frozen=True, slots=True)
class Get:
    """``get``, ``gets``, ``gat`` or ``gats``: the reply is :class:`Values`.

    Attributes:
        keys: at least one.
        cas: whether the reply has CAS numbers.
        exptime: the items' new exptime; None leaves the old one.
    """

    keys: tuple[bytes, ...]
    cas: bool = False
    exptime: int | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """A storage command: ``set``, ``add``, ``replace``, ``append``, ``prepend`` or ``cas``.

    Attributes:
        flags: the client's own 32 bits.
        exptime: 0 never; up to 30 days in seconds from now, larger ones since 1970; negative: at
            once.
        cas: the number that the item must have, for ``cas``.
        noreply: no reply is wanted.
    """

    verb: StoreVerb
    key: bytes
    value: Buffer
    flags: int = 0
    exptime: int = 0
    cas: int = 0
    noreply: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """``delete``."""

    key: bytes
    noreply: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """``incr``, or ``decr`` if ``down`` is set: the reply is a :class:`Number`."""

    key: bytes
    delta: int
    down: bool = False
    noreply: bool = False


@dataclass(frozen=True, slots=True)
class Touch:
    """``touch``: give an item a new exptime."""

    key: bytes
    exptime: int
    noreply: bool = False


@dataclass(frozen=True, slots=True)
class FlushAll:
    """``flush_all``: remove everything, now or ``delay`` later (as an exptime)."""

    delay: int = 0
    noreply: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """Any other command, as its words: ``version``, ``stats``, ``verbosity``, unknown ones."""

    words: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Quit:
    """``quit``: the client wants to be disconnected.  A server's codec ends by itself."""


@dataclass(frozen=True, slots=True)
class MetaGet:
    """``mg``.

    Attributes:
        key: the bytes of the key; with flag ``b`` the line has them in base64.
        flags: by their letters, for instance ``{"v": None, "t": None, "T": 30}``.
    """

    key: bytes
    flags: Flags = field(default_factory=dict[str, Token])


@dataclass(frozen=True, slots=True)
class MetaSet:
    """``ms``; see :class:`MetaGet`."""

    key: bytes
    value: Buffer
    flags: Flags = field(default_factory=dict[str, Token])


@dataclass(frozen=True, slots=True)
class MetaDelete:
    """``md``; see :class:`MetaGet`."""

    key: bytes
    flags: Flags = field(default_factory=dict[str, Token])


@dataclass(frozen=True, slots=True)
class MetaCount:
    """``ma``, meta arithmetic; see :class:`MetaGet`."""

    key: bytes
    flags: Flags = field(default_factory=dict[str, Token])


@dataclass(frozen=True, slots=True)
class MetaNoop:
    """``mn``: the reply has the code MN, so everything before it was answered."""


@dataclass(frozen=True, slots=True)
class MetaDebug:
    """``me``: the reply is a :class:`Debug`."""

    key: bytes
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Invalid:
    """A command that is to be answered with ``error`` and nothing else; only received.

    Attributes:
        error: the answer; :class:`NoReply` if the client wants none.
        refused: the command, without its value, if the value is too large or does not end where
            the line says.
        too_large: it is too large; the old value of its key would be stale.
    """

    error: Error | NoReply
    refused: Store | MetaSet | None = None
    too_large: bool = False


Request = (
    Get | Store | Delete | Count | Touch | FlushAll | Command | Quit
    | MetaGet | MetaSet | MetaDelete | MetaCount | MetaNoop | MetaDebug
)  # fmt: skip

# -- replies --


@dataclass(frozen=True, slots=True)
class Value:
    """One item of :class:`Values`; ``cas`` is None if no number was asked for."""

    key: bytes
    value: Buffer
    flags: int = 0
    cas: int | None = None


@dataclass(frozen=True, slots=True)
class Values:
    """The reply to :class:`Get`: the items that there are."""

    items: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """A reply of capital letters: STORED, NOT_STORED, EXISTS, NOT_FOUND, DELETED, TOUCHED, OK..."""

    word: str


@dataclass(frozen=True, slots=True)
class Number:
    """The reply to :class:`Count`."""

    value: int


@dataclass(frozen=True, slots=True)
class Version:
    """The reply to ``version``."""

    text: str


@dataclass(frozen=True, slots=True)
class Stats:
    """The reply to ``stats``: names and values.

    Without a line it is what a client receives as :class:`Values` without items: ``END`` alone.
    """

    lines: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Error:
    """``ERROR``, ``CLIENT_ERROR text`` or ``SERVER_ERROR text``."""

    kind: Literal["ERROR", "CLIENT_ERROR", "SERVER_ERROR"]
    text: str = ""

    @classmethod
    def parse(cls, line: bytes) -> Error:
        """The error that a line is.

        Raises:
            ValueError: it is none.
        """
        kind, _, text = line.decode("ascii").rstrip().partition(" ")
        if kind not in {"ERROR", "CLIENT_ERROR", "SERVER_ERROR"}:
            raise ValueError(f"not the line of an error: {line!r}")
        return cls(cast("Literal['ERROR', 'CLIENT_ERROR', 'SERVER_ERROR']", kind), text)


@dataclass(frozen=True, slots=True)
class Meta:
    """The reply to a meta command.

    Attributes:
        code: HD stored, deleted, found, changed; VA with a value; EN a miss of ``mg``; NF not
            found; NS not stored; EX another CAS number; MN of ``mn``.
        flags: in the order of the request's.
        value: with code VA only.
    """

    code: MetaCode
    flags: Flags = field(default_factory=dict[str, Token])
    value: Buffer | None = None


@dataclass(frozen=True, slots=True)
class Debug:
    """The reply to :class:`MetaDebug`: what the server knows of an item, by name."""

    key: bytes
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class NoReply:
    """The reply to a command that wants none: it encodes to nothing."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A reply in the bytes of the protocol, its line ends included; only sent.

    It is for replies without a class: those to ``stats detail`` and ``stats cachedump``.
    """

    data: bytes


Reply = Values | Status | Number | Version | Stats | Error | Meta | Debug | NoReply | Encoded
