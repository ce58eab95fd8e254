"""Our server against Debian's memcached, on the loopback interface, over sockets."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackmap.memcached.prefixes import Prefixes
from stackmap_testbed.memcached.conformance import (
    Address,
    Conversation,
    difference_in,
    first_difference,
    memccapable_outcomes,
    missing_programs,
    oracle,
    pymemcache_outcomes,
    random_meta_command,
    until_hang_up,
)
from stackmap_testbed.memcached.pressure import server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)


@pytest.fixture(scope="module")
def ours() -> Iterator[Address]:
    with serving("loop") as address:
        yield address


@contextlib.contextmanager
def serving(model: str) -> Iterator[Address]:
    """Run our server, and see it end in order."""
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", "memcached", "--model", model]
    with subprocess.Popen(
        [*command, "--backend", "sockets", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[2].rstrip(",")
            host, port = address.rsplit(":", 1)
            yield host, int(port)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("stopped after ")
        assert process.wait(10) == 0


@pytest.fixture(scope="module")
def theirs() -> Iterator[Address]:
    with oracle() as address:
        yield address


@pytest.mark.parametrize("seed", range(12))
def test_the_same_conversation(ours: Address, theirs: Address, seed: int) -> None:
    assert first_difference(ours, theirs, seed=seed, count=400) is None


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(st.randoms(use_true_random=False).map(random_meta_command), max_size=30))
def test_the_same_meta_commands(ours: Address, theirs: Address, commands: list[bytes]) -> None:
    assert difference_in(ours, theirs, commands) is None


@pytest.mark.parametrize(
    "commands",
    [
        # Growing a number: memcached takes its marks, and its key is no longer said in base64.
        [b"ms YQ== 1 b\r\n9\r\n", b"mg YQ== b k v\r\n", b"ma YQ== b k v\r\n", b"mg YQ== b k v\r\n"],
        [b"ms a 1\r\n5\r\n", b"md a I\r\n", b"ma a v\r\n", b"mg a v\r\n", b"mg a v\r\n"],
        [b"ms a 1\r\n9\r\n", b"md a I\r\n", b"ma a v\r\n", b"mg a v\r\n"],
        [b"ms a 2 T1000\r\n10\r\n", b"ma a T5000 t\r\n", b"ma a t T1000\r\n", b"ma a T0 t\r\n"],
        [b"mg a N0 T1000 t v\r\n", b"mg a R2000 t\r\n", b"md a I\r\n", b"mg a v\r\n", b"get a\r\n"],
        [b"mg a N1000\r\n", b"mg a\r\n", b"ms a 1\r\nx\r\n", b"mg a R2000 v\r\n"],
        [b"ms a 1 T1000\r\nx\r\n", b"mg a R2000\r\n" * 2, b"md a I\r\n", b"mg a\r\n"],
        [b"set a 0 0 4\r\n9\0xy\r\n", b"ma a v\r\n", b"incr a 1\r\n", b"get a\r\n"],
        [b"ms a 1\r\nx\r\n", b"mg a h u\r\n", b"mg a h\r\n", b"mg a h\r\n", b"me a\r\n"],
        [b"set a 5 0 1\r\nx\r\n", b"ms a 1 MA F9\r\ny\r\n", b"mg a f v\r\n", b"gets a\r\n"],
        [b"ms a 2000000 F1\r\n" + bytes(2_000_000) + b"\r\n", b"mg a v\r\n"],
        [b"ms a 1\r\nx\r\n", b"ms a 2000000 q ME\r\n" + bytes(2_000_000) + b"\r\n", b"mg a\r\n"],
        [b"ms a 1000000\r\n" + bytes(1_000_000) + b"\r\n", b"mg a s v k\r\n", b"ma a C7\r\n"],
        [b"mg a q\r\nmg b q v\r\nms a 1 q\r\nx\r\nmd b q\r\nmd a q\r\nma a q\r\nmn\r\n"],
    ],
)  # fmt: skip
def test_meta_commands(ours: Address, theirs: Address, commands: list[bytes]) -> None:
    assert difference_in(ours, theirs, commands) is None


def test_pymemcache(ours: Address, theirs: Address) -> None:
    expected = pymemcache_outcomes(theirs)
    assert sum(outcome == "passed" for outcome in expected.values()) >= 100
    assert pymemcache_outcomes(ours) == expected


def test_memccapable(ours: Address, theirs: Address) -> None:
    expected = memccapable_outcomes(theirs)
    assert list(expected.values()).count("pass") >= 27
    assert memccapable_outcomes(ours) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"foo HTTP/1.0\r\n",
        b"x" * 3000,
        b" " * 101 + b"get " + b"k " * 1500,
        b"quit\r\n",
        b"quit now\r\n",
    ],
)
def test_hanging_up(ours: Address, theirs: Address, data: bytes) -> None:
    assert until_hang_up(ours, data) == until_hang_up(theirs, data)


def test_the_binary_protocol_is_refused_as_memcached_refuses_a_command(
    ours: Address, theirs: Address
) -> None:
    request = b"\x80\xee" + bytes(10) + b"abcd" + bytes(8)
    refusal = until_hang_up(ours, request + b"more")
    with socket.create_connection(theirs, 10) as sock:
        sock.sendall(request)
        unknown = sock.recv(100)
    assert refusal.endswith(b"the binary protocol is not supported, use the text protocol")
    # All but the length of the text: magic, opcode, status, opaque.
    assert refusal[:8] + refusal[12:24] == unknown[:8] + unknown[12:24]


def test_a_client_that_is_refused_can_read_why(ours: Address) -> None:
    """A connection closed with input unread is reset, which takes the reply away."""
    with socket.create_connection(ours, 30) as sock:
        sock.sendall(b"\x80\xee" + bytes(22))
        for _ in range(100):
            sock.sendall(bytes(10_000))
        sock.shutdown(socket.SHUT_WR)
        reply = b""
        while data := sock.recv(1000):
            reply += data
    assert reply.endswith(b"the binary protocol is not supported, use the text protocol")


def test_the_version_is_one_that_all_clients_can_parse(ours: Address, theirs: Address) -> None:
    replies = [until_hang_up(address, b"version\r\nquit\r\n") for address in (ours, theirs)]
    assert replies[0] == replies[1]
    # npm's memcached looks for this in the word after VERSION.
    assert re.search(rb"(\d+)(?:\.)(\d+)(?:\.)(\d+)$", replies[0].split()[1])


@pytest.mark.parametrize(
    "line",
    [
        b"get" + b" a b c" * 3000,
        b"  gets " + b" a  c " * 3000 + b"a",
        b"get " + b" ".join(b"%d" % n for n in range(20_000)),
        b"gets a " + b"k" * 250 + b" " + b"x " * 2000 + b"b",
        b"get a " + b"k" * 251 + b" " + b"x " * 2000 + b"b",
        b"get " + b"x " * 2000 + b"k" * 251,
        b"get " + b" " * 3000,
        b"get" + b" " * 3000 + b"a",
    ],
)
def test_long_lines(ours: Address, theirs: Address, line: bytes) -> None:
    replies = []
    for address in (ours, theirs):
        conversation = Conversation(address)
        conversation.ask(b"flush_all\r\n")
        for key in (b"a", b"b", b"9999"):
            conversation.ask(b"set %b 5 0 1\r\nx\r\n" % key)
        reply = conversation.ask(line + b"\r\n")
        replies.append(re.sub(rb"(VALUE \S+ 5 1) \d+", rb"\1 CAS", reply))
        conversation.close()
    assert replies[0] == replies[1]


def test_a_large_conversation_in_one_write(ours: Address, theirs: Address) -> None:
    """The client does not read before it has sent everything."""
    values = [bytes([65 + n]) * (n * 9973) for n in range(20)]
    stream = b"flush_all\r\n" + b"".join(
        b"set k%d 0 0 %d\r\n%b\r\n" % (n, len(value), value) for n, value in enumerate(values)
    )
    stream += b"".join(b"get k%d k%d\r\n" % (n, 19 - n) for n in range(20)) * 3
    replies = []
    for address in (ours, theirs):
        conversation = Conversation(address)
        replies.append(conversation.ask(stream))
        conversation.close()
    assert replies[0] == replies[1]


@pytest.fixture(scope="module")
def as_installed() -> Iterator[Address]:
    """Memcached with all that it does by itself, which its reports have lines for."""
    with oracle(options="lru_maintainer") as address:
        yield address


def report(address: Address, words: bytes) -> dict[str, str]:
    """The lines of a report by their names, without the numbers of connections."""
    conversation = Conversation(address)
    conversation.ask(b"set k 0 0 1\r\nx\r\n")
    reply = conversation.ask(b"stats%b\r\n" % words).decode()
    conversation.close()
    lines = reply.removesuffix("END\r\n").splitlines()
    assert all(line.startswith("STAT ") for line in lines)
    return {re.sub(r"^\d+:(?=[a-z])", "", name): value for name, value in map(_split, lines)}


def _split(line: str) -> tuple[str, str]:
    _stat, name, value = line.split(" ", 2)
    return name, value


@pytest.mark.parametrize(
    "words",
    [
        b"", b" ", b" settings", b" items", b" slabs", b" sizes", b" conns", b" conns x",
        b" extstore",
    ],
)  # fmt: skip
def test_reports_have_the_lines_of_memcached(
    ours: Address, as_installed: Address, words: bytes
) -> None:
    # Slabs are counted by memcached: "1:used_chunks" is of its first class.
    assert list(report(ours, words)) == list(report(as_installed, words))


def test_the_report_of_an_idle_timeout(as_installed: Address) -> None:
    with (
        oracle(options="idle_timeout=100") as theirs,
        server("--backend", "sockets", "--idle-timeout", "100") as (ours, _pid),
    ):
        assert list(report(ours, b"")) == list(report(theirs, b""))
        assert report(ours, b" settings")["idle_timeout"] == "100"


def test_the_report_of_connections(ours: Address) -> None:
    with (
        socket.create_connection(ours) as half_value,
        socket.create_connection(ours) as refused_value,
        socket.create_connection(ours) as idle,
    ):
        half_value.sendall(b"set k 0 0 100\r\nx")
        refused_value.sendall(b"set k 0 0 2000000\r\nx")
        idle.sendall(b"version\r\n")
        idle.recv(100)
        assert refused_value.recv(100).startswith(b"SERVER_ERROR")
        conversation = Conversation(ours)
        reply = conversation.ask(b"stats conns\r\n").decode()
        conversation.close()
        name = "tcp:%s:%d"
        for sock, state in (
            (half_value, "conn_nread"), (refused_value, "conn_swallow"), (idle, "conn_read"),
        ):  # fmt: skip
            found = re.search(
                r"STAT (\d+):addr " + re.escape(name % sock.getsockname()) + "\r\n"
                r"STAT \1:listen_addr " + re.escape(name % ours) + "\r\n"
                r"STAT \1:state (\w+)\r\nSTAT \1:secs_since_last_cmd \d+\r\n",
                reply,
            )
            assert found is not None, reply
            assert found[2] == state
    assert f":addr tcp:{ours[0]}:{ours[1]}\r\n" in reply
    assert ":state conn_listening\r\n" in reply


def test_settings_are_those_of_the_server(ours: Address) -> None:
    settings = report(ours, b" settings")
    assert (settings["inter"], int(settings["tcpport"])) == ours
    assert settings["maxconns"] == "1024"


_COUNTED = [
    b"set a 0 0 1\r\nx\r\n", b"get a\r\n", b"get b\r\n", b"gets a b\r\n", b"gat 0 a\r\n",
    b"gat 0 b\r\n", b"gats 0 a b\r\n", b"touch a 0\r\n", b"touch b 0\r\n", b"delete b\r\n",
    b"delete a\r\n", b"set n 0 0 1\r\n5\r\n", b"incr n 1\r\n", b"decr n 1\r\n",
    b"incr m 1\r\n", b"decr m 1\r\n", b"cas a 0 0 1 1\r\nx\r\n", b"cas n 0 0 1 999999999\r\nx\r\n",
    b"set a 0 0 2000000\r\n" + bytes(2_000_000) + b"\r\n", b"append q 0 0 1\r\nx\r\n",
    b"add n 0 0 1\r\nx\r\n", b"get" + b" n" * 40 + b"\r\n", b"set e 0 -1 1\r\nx\r\n", b"get e\r\n",
    b"set e 0 -1 1\r\nx\r\n", b"gat 0 e\r\n", b"set e 0 -1 1\r\nx\r\n", b"delete e\r\n",
    b"set e 0 -1 1\r\nx\r\n", b"touch e 0\r\n", b"flush_all -1\r\n", b"get n\r\n",
    b"mg a\r\n", b"mg a v T0\r\n", b"mg a N0 T0\r\n", b"mg a N0 v\r\n", b"mg a q T0\r\n",
    b"ms a 1\r\nx\r\n", b"ms a 1 ME\r\nx\r\n", b"ms a 1 C1\r\nx\r\n", b"ms a 1 C1 I\r\nx\r\n",
    b"ms b 1 C1\r\nx\r\n", b"ms a 1\r\nxyz\r\n", b"ms a 1 MX\r\nx\r\n", b"ms a 1 MA C1\r\nx\r\n",
    b"ms a 2000000\r\n" + bytes(2_000_000) + b"\r\n", b"ma a\r\n", b"ma a MD\r\n", b"ma n N0\r\n",
    b"ma n\r\n", b"ma n MD\r\n", b"ma n C1\r\n", b"md n C1\r\n", b"md n I\r\n", b"md n\r\n",
    b"md n\r\n", b"me a\r\n", b"me n\r\n", b"me\r\n", b"mn\r\n", b"mg n E\r\n",
    b"ms e 1 T-1\r\nx\r\n", b"mg e\r\n", b"ms e 1 T-1\r\nx\r\n", b"ma e N0\r\n",
    b"set n 0 0 1\r\nxyz\r\n",
]  # fmt: skip
_SAME = (
    "cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses",
    "get_expired", "get_flushed", "delete_misses", "delete_hits", "incr_misses", "incr_hits",
    "decr_misses", "decr_hits", "cas_misses", "cas_hits", "cas_badval", "touch_hits",
    "touch_misses", "store_too_large", "store_no_memory", "total_items", "evictions",
    "accepting_conns",
)  # fmt: skip


def test_the_same_is_counted() -> None:
    with oracle() as theirs, server("--backend", "sockets") as (ours, _pid):
        pair = Conversation(ours), Conversation(theirs)
        for command in _COUNTED:
            counters = []
            for conversation in pair:
                conversation.ask(command)
                lines = dict(map(_split, conversation.ask(b"stats\r\n").decode().splitlines()[:-1]))
                counters.append({name: lines[name] for name in _SAME})
            assert counters[0] == counters[1], command[:80]
        for conversation in pair:
            conversation.close()


def test_details_by_prefix(ours: Address, theirs: Address) -> None:
    commands = (
        b"set foo:1 0 0 1\r\nx\r\nget foo:1 foo:2 bar\r\ndelete foo:1\r\ngets foo:1 foo:2\r\n"
        b"gat 0 foo:1\r\ntouch foo:1 0\r\nincr foo:1 1\r\nset a:b:c 0 0 1\r\nx\r\n"
        b"add a:b:c 0 0 1\r\ny\r\nget a:b:c\r\nset a: 0 0 2000000\r\n" + bytes(2_000_000) + b"\r\n"
    )
    dumps = []
    for address in (ours, theirs):
        conversation = Conversation(address)
        answers = [
            conversation.ask(b"stats detail %b\r\n" % word) for word in (b"", b"x", b"dump", b"on")
        ]
        conversation.ask(commands)
        dump = conversation.ask(b"stats detail dump\r\n")
        answers.append(b"".join(sorted(dump.splitlines(keepends=True))))
        answers.append(conversation.ask(b"stats detail off\r\n"))
        conversation.ask(b"get foo:1\r\n")
        dump = conversation.ask(b"stats detail dump\r\n")
        answers.append(b"".join(sorted(dump.splitlines(keepends=True))))
        conversation.ask(b"stats reset\r\n")
        answers.append(conversation.ask(b"stats detail dump\r\n"))
        dumps.append(answers)
        conversation.close()
    assert dumps[0] == dumps[1]


def test_prefixes_are_not_counted_without_bound() -> None:
    prefixes = Prefixes()
    for number in range(10_000):
        prefixes.set(b"%d:x" % number)
    assert prefixes.dump().count(b"PREFIX") == 4096


def test_our_own_report(ours: Address) -> None:
    conversation = Conversation(ours)
    reply = conversation.ask(b"stats stackmap\r\n").decode()
    conversation.close()
    lines = dict(line.split()[1:3] for line in reply.splitlines()[:-1])
    assert lines["backend"] == "sockets"
    assert int(lines["stackmap_socket_rx_bytes"]) > 0
    assert lines["stackmap_rx_bytes"] == "0"


def test_a_client_that_does_not_read(ours: Address) -> None:
    read_late(ours, 300)


def read_late(ours: Address, count: int) -> None:
    """The replies to a client that does not read are not lost, and the others are served."""
    lazy = socket.create_connection(ours)
    busy = Conversation(ours)
    with lazy:
        busy.ask(b"set big 0 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\n")
        lazy.sendall(b"get big\r\n" * count)
        for _ in range(count // 3):
            assert busy.ask(b"get big\r\n").endswith(b"END\r\n")
        received = 0
        lazy.settimeout(20)
        lazy.shutdown(socket.SHUT_WR)
        while data := lazy.recv(1 << 20):
            received += len(data)
    assert received == count * len(b"VALUE big 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\nEND\r\n")
    busy.close()
