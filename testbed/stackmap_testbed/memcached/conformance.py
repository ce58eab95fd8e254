"""Memcached servers held to memcached: two suites that clients bring, and a differential test.

Every function takes the address of a server that is running, so the same comparison is made on one
host and across two.  The oracle is Debian's memcached (:func:`oracle`).
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Address = tuple[str, int]

#: Its background threads borrow items now and then, and incr then works differently.
_NO_THREADS = "no_lru_maintainer,no_lru_crawler"
_BARRIER = b"version\r\n"
_BARRIER_REPLY = re.compile(rb"VERSION [^\r\n]*\r\n\Z")
_CAS_REPLY = re.compile(rb"\AME .* cas=(\d+) ")
_CAS = re.compile(rb"^(VALUE \S+ \d+ \d+) \d+\r$", re.MULTILINE)
_META_LINE = re.compile(rb"^(?:HD|VA|EN|NF|NS|EX|ME)\b[^\r\n]*", re.MULTILINE)
#: In such a line: CAS numbers, and numbers of seconds.
_META_CAS = re.compile(rb" (c|cas=)[1-9]\d*")
_META_SECONDS = re.compile(rb" (t|l|la=|exp=)(-?\d+)")
_META_CLASS = re.compile(rb" cls=\d+")
_MEMCCAPABLE_LINE = re.compile(r"^(ascii .*?)\s+\[(\w+)\]$", re.MULTILINE)


@contextlib.contextmanager
def oracle(memory: int = 64, options: str = _NO_THREADS) -> Iterator[Address]:
    """Run Debian's memcached on a free port of the loopback interface.

    Args:
        memory: its ``-m``, in MB.
        options: its ``-o``.

    Raises:
        FileNotFoundError: memcached is not installed.
        TimeoutError: it does not listen within ten seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address: Address = reserved.getsockname()
    command = [
        "memcached", "-u", "nobody", "-l", address[0], "-p", str(address[1]), "-U", "0",
        "-m", str(memory), "-o", options,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_listener(address)
            yield address
        finally:
            process.terminate()


def wait_for_listener(address: Address, patience: float = 10.0) -> None:
    """Return as soon as somebody listens there.

    Raises:
        TimeoutError: nobody does within ``patience`` seconds.
    """

    def somebody_listens() -> bool:
        try:
            socket.create_connection(address, 1.0).close()
        except OSError:
            return False
        return True

    if not wait_until(somebody_listens, patience):
        raise TimeoutError(f"nobody listens on {address[0]}:{address[1]}")


# -- suites that clients bring --


def pymemcache_outcomes(address: Address, patience: float = 300.0) -> dict[str, str]:
    """Run pymemcache's own integration suite, which its wheel contains.

    Returns:
        ``"passed"``, ``"skipped"`` or ``"failed"`` by the name of the test.
    """
    package = find_spec("pymemcache")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pymemcache is not installed")
    suite = Path(package.origin).parent / "test" / "test_integration.py"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null",
                f"--rootdir={folder}", f"--junitxml={results}", suite,
                "--server", address[0], "--port", str(address[1]),
            ],
            stdout=subprocess.DEVNULL, cwd=folder, timeout=patience, check=False,
        )  # fmt: skip
        outcomes = {}
        for case in ET.parse(results).getroot().iter("testcase"):
            tags = {child.tag for child in case}
            outcome = "failed" if tags & {"failure", "error"} else "passed"
            outcomes[case.get("name", "")] = "skipped" if "skipped" in tags else outcome
        return outcomes


def memccapable_outcomes(address: Address, patience: float = 120.0) -> dict[str, str]:
    """Run libmemcached's ``memccapable -a``; it flushes the server.

    Returns:
        ``"pass"`` or ``"FAIL"`` by the name of the test.

    Raises:
        FileNotFoundError: libmemcached-tools is not installed.
    """
    run = subprocess.run(
        ["memccapable", "-h", address[0], "-p", str(address[1]), "-a"],
        capture_output=True, text=True, timeout=patience, check=False,
    )  # fmt: skip
    return dict(_MEMCCAPABLE_LINE.findall(run.stdout))


def missing_programs() -> list[str]:
    """Those of the programs needed here that are not installed."""
    return [name for name in ("memcached", "memccapable") if shutil.which(name) is None]


# -- the same conversation with two servers --


class Conversation:
    """One connection on which commands are asked one by one."""

    def __init__(self, address: Address, timeout: float = 30.0) -> None:
        self._sock = socket.create_connection(address, timeout)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, command: bytes) -> bytes:
        """Return the server's answer, which may be empty.

        The command must be complete, and the answer must not end with a line ``VERSION ...``.

        Raises:
            ConnectionError: the server hangs up.
            TimeoutError: it does not answer.
        """
        self._sock.sendall(command + _BARRIER)
        reply = bytearray()
        while True:
            received = self._sock.recv(1 << 20)
            if not received:
                raise ConnectionError(f"the server hung up on {command[:80]!r}")
            reply += received
            barrier = _BARRIER_REPLY.search(reply, max(len(reply) - 64, 0))
            if barrier:
                return bytes(reply[: barrier.start()])

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def until_hang_up(address: Address, data: bytes, patience: float = 10.0) -> bytes:
    """Send ``data`` and return everything that is answered before the server hangs up.

    Raises:
        TimeoutError: the server does not hang up.
    """
    with socket.create_connection(address, patience) as sock:
        reply = bytearray()
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            while received := sock.recv(1 << 16):
                reply += received
        return bytes(reply)


@dataclass(frozen=True)
class Difference:
    """Two servers' answers to the same command after the same conversation."""

    number: int
    command: bytes
    answers: tuple[bytes, bytes]


def first_difference(ours: Address, theirs: Address, *, seed: int, count: int) -> Difference | None:
    """Hold the same random conversation with two servers; both are flushed first.

    See :func:`difference_in`.
    """
    generator = random.Random(seed)
    return difference_in(ours, theirs, (random_command(generator) for _ in range(count)))


def difference_in(ours: Address, theirs: Address, templates: Iterable[bytes]) -> Difference | None:
    """Hold the same conversation with two servers; both are flushed first.

    ``cas`` numbers are each server's own: they are taken from its answers, and not compared.  Times
    are compared to the nearest thousand seconds, and slab classes not at all.
    """
    pair = Conversation(ours), Conversation(theirs)
    try:
        for conversation in pair:
            conversation.ask(b"flush_all\r\n")
        for number, template in enumerate(templates):
            answers = []
            for conversation in pair:
                command = template
                if b"{cas}" in template:
                    key = template.split()[1]
                    # This changes nothing.
                    found = _CAS_REPLY.match(conversation.ask(b"me %b\r\n" % key))
                    command = template.replace(b"{cas}", found[1] if found else b"1")
                answers.append(comparable(conversation.ask(command)))
            if answers[0] != answers[1]:
                return Difference(number, template, (answers[0], answers[1]))
    finally:
        for conversation in pair:
            conversation.close()
    return None


def comparable(answer: bytes) -> bytes:
    """The answer without what is each server's own."""
    return _META_LINE.sub(_comparable_line, _CAS.sub(rb"\1 CAS\r", answer))


def _comparable_line(line: re.Match[bytes]) -> bytes:
    text = _META_CLASS.sub(b"", _META_CAS.sub(rb" \1N", line[0]))
    return _META_SECONDS.sub(_comparable_seconds, text)


def _comparable_seconds(found: re.Match[bytes]) -> bytes:
    seconds = int(found[2])
    # memcached says the remaining time of an item that has expired in 32 bits without a sign.
    rounded = 0 if seconds >= 1 << 31 else round(seconds, -3) if seconds != -1 else -1
    return b" %b%d" % (found[1], rounded)


_KEYS = [b"a", b"b", b"key-3", b"4" * 100, b"5" * 250]
_STORAGE = [b"set", b"set", b"add", b"replace", b"append", b"prepend"]
# No number of 2**63 and more: memcached looks for its minus sign in memory beyond the item.
_NUMBERS = [b"0", b"1", b"7", b"007", b"+5", b"-1", b"99999", b"4294967295", b"4294967296",
            b"18446744073709551616", b"x", b"1x", b"1\t", b"\t1"]  # fmt: skip
_EXPTIMES = [b"0"] * 12 + [b"1000", b"-1", b"2592000", b"2592001", b"x", b"4000000000", b"1.5"]
_LINES = [
    b"", b" ", b"get", b"gets", b"gat", b"gat 0", b"get " + b"k" * 251, b"set a 0 0", b"set",
    b"add a 0 0 b", b"set a 0 0 -1", b"set a 0 0 3000000000", b"set a 0 0 2147483647",
    b"set " + b"k" * 251 + b" 0 0 1", b"cas a 0 0 1", b"cas a 0 0 1 1 1 1", b"incr a",
    b"incr a 1 1 1", b"incr " + b"k" * 251 + b" 1", b"delete", b"delete a 0 0 0", b"delete a 1",
    b"delete a noreply 0", b"delete a x", b"delete a 0 x", b"delete a x noreply", b"touch a",
    b"touch a 0 1 2", b"touch " + b"k" * 251 + b" 0", b"delete " + b"k" * 251, b"flush_all x",
    b"flush_all 1 2 3", b"flush_all x noreply", b"verbosity", b"verbosity 1", b"verbosity x",
    b"verbosity 1 noreply", b"verbosity 1 2 3", b"verbosity noreply", b"VERSION", b"GET a", b"x",
    b"xy", b"stats foo", b"stats reset", b"shutdown", b"get a HTTP/1.1", b"  get a  b ",
    b"gat x a", b"cache_memlimit 1", b"cache_memlimit x", b"stats cachedump",
    b"stats cachedump 99 1", b"stats sizes", b"setx a", b"getx a", b"x" * 3000,
    b"get" + b" nokey" * 600, b"slabs", b"lru",
    b"cache_memlimit 64 noreply", b"gets a a a", b"gats 0 a b", b"append a 0 0", b"a" * 250,
]  # fmt: skip


def random_command(generator: random.Random) -> bytes:
    """One complete command, mostly valid; ``{cas}`` stands for the key's current number."""
    if generator.randrange(3) == 0:
        return random_meta_command(generator)
    choose = generator.choice
    key = choose(_KEYS)
    noreply = choose([b"", b"", b"", b" noreply"])
    kind = generator.randrange(20)
    if kind < 1 and generator.random() < 0.2:
        # The header is valid: memcached takes the value of an invalid one for a line that is too
        # long, and hangs up.
        size = choose([1_048_000, 1_048_267, 1_048_300, 1_048_412, 1_048_576, 2_000_000])
        value = b"v" * (size + generator.randrange(-2, 3))
        flags = choose([b"0", b"1"])
        return b"%b %b %b 0 %d%b\r\n%b\r\n" % (
            choose(_STORAGE), key, flags, len(value), noreply, value
        )  # fmt: skip
    if kind < 7:
        verb = choose(_STORAGE)
        flags = choose(_NUMBERS) if generator.random() < 0.2 else b"%d" % generator.randrange(1000)
        value = _random_value(generator)
        line = b"%b %b %b %b %d%b" % (verb, key, flags, choose(_EXPTIMES), len(value), noreply)
        return line + b"\r\n" + value + choose([b"\r\n"] * 15 + [b"xx\r\n"])
    if kind < 8:
        value = _random_value(generator)
        cas = choose([b"{cas}", b"{cas}", b"{cas}", b"1", b"x", b"-1"])
        return b"cas %b 3 0 %d %b%b\r\n%b\r\n" % (key, len(value), cas, noreply, value)
    if kind < 12:
        verb = choose([b"get", b"gets", b"get", b"gat 0", b"gats 1000", b"gat -1"])
        return b"%b %b\r\n" % (verb, b" ".join(generator.choices(_KEYS, k=choose([1, 1, 2, 9]))))
    if kind < 16:
        verb = choose([b"incr", b"decr"])
        return b"%b %b %b%b\r\n" % (verb, key, choose(_NUMBERS), noreply)
    if kind < 17:
        return b"touch %b %b%b\r\n" % (key, choose(_EXPTIMES), noreply)
    if kind < 18:
        hold = choose([b"", b"", b" 0"])
        return b"delete %b%b%b\r\n" % (key, hold, noreply)
    if kind < 19 and generator.random() < 0.1:
        return b"flush_all%b%b\r\n" % (choose([b"", b" 0", b" -1"]), noreply)
    return choose(_LINES) + choose([b"\r\n", b"\r\n", b"\n"])


#: Some of these are words that the classic commands use as well.
_META_KEYS = [b"a", b"b", b"a", b"b", b"YWI=", b"YSBi", b"a" * 250]
_META_TTLS = [b"0", b"1000", b"5000", b"-1", b"2592000", b"x", b""]
_META_TOKENS = {
    b"N": _META_TTLS, b"T": _META_TTLS, b"R": _META_TTLS,
    b"C": [b"{cas}", b"{cas}", b"{cas}", b"0", b"1", b"999999999999", b"x"],
    b"F": [b"0", b"7", b"4294967296", b"-1", b"x"],
    b"D": [b"1", b"10", b"18446744073709551615", b"-1", b"x"],
    b"J": [b"0", b"99", b"x"],
    b"O": [b"", b"op", b"k", b"c" * 31, b"o" * 32],
    b"P": [b"", b"path"], b"L": [b"", b"hint"],
}  # fmt: skip
_META_MODES = {
    b"ms": [b"E", b"A", b"P", b"R", b"S", b"S", b"X", b"", b"EE"],
    b"ma": [b"I", b"+", b"D", b"-", b"X", b""],
}
_META_FLAGS = {
    b"mg": b"bcfhklOqstuvNRTvvkWPLMCIxE",
    b"ms": b"bcCFIkOqTMvSPLMMCCII",
    b"md": b"bCIkOqTIITPxv",
    # Not T: memcached loses it if the number becomes longer.
    b"ma": b"bCNJDMqtcvkOvvNNP",
}
_META_LINES = [
    b"mg", b"ms", b"md", b"ma", b"me", b"mn", b"mn x", b"mg a", b"ms a", b"ms a x", b"ms a -1",
    b"ms a 3000000000", b"mg " + b"k" * 251, b"ms " + b"k" * 251 + b" 1",
    b"md " + b"k" * 251 + b" q", b"me " + b"k" * 251, b"ma " + b"k" * 251, b"me a", b"me b",
    b"me YWI= b", b"me YW b", b"mgx a", b"mg a " + b"v " * 30,
    b"mg a b c f h k l O1 q s t u v N0 R0 T0 P L", b"mg a b c f h k l O1 q s t u v N0 R0 T0 P",
    b"mg a v noreply", b"mg \tYWI= b k v", b"mg Y.W-I= b k v", b"mg YW=I b k", b"mg Y=== b k",
    b"mg ==== b k", b"mg YWI=YWI= b k v", b"mg  a   v ", b"mg a \x7f", b"md a noreply",
    b"me a noreply", b"mn noreply",
]  # fmt: skip


def random_meta_command(generator: random.Random) -> bytes:
    """One complete meta command, mostly valid."""
    choose = generator.choice
    if generator.randrange(8) == 0:
        return choose(_META_LINES) + choose([b"\r\n", b"\n"])
    verb = choose([b"mg", b"mg", b"ms", b"ms", b"md", b"ma"])
    words = [verb, choose(_META_KEYS)]
    value = b""
    if verb == b"ms":
        value = _random_value(generator)
        words.append(b"%d" % len(value))
        value += choose([b"\r\n"] * 15 + [b"xx\r\n"])
    flags = _META_FLAGS[verb]
    seen = set()
    for _ in range(generator.randrange(7)):
        number = choose(flags)
        flag = bytes((number,))
        if flag not in seen or generator.randrange(10) == 0:
            seen.add(flag)
            tokens = (
                _META_MODES.get(verb, [b"S"]) if flag == b"M" else _META_TOKENS.get(flag, [b""])
            )
            words.append(flag + choose(tokens))
    return b" ".join(words) + b"\r\n" + value


def _random_value(generator: random.Random) -> bytes:
    kind = generator.randrange(8)
    if kind < 3:
        return b"%d" % generator.choice([0, 1, 9, 10, 99, 2**32, 2**64])
    if kind < 4:
        return generator.choice([b"", b" 12", b"12 ", b"+4", b"-4", b"1 2", b"0" * 30 + b"7", b"x"])
    if kind < 5:
        # Its line must not be too long either, if the header is invalid.
        return generator.randbytes(generator.choice([1000, 2000])).replace(b"VERSION", b"")
    return generator.randbytes(generator.randrange(200)).replace(b"VERSION", b"")
