"""CPython's own tests of asyncio, with the loop of this package in the place of theirs.

They come with Python (``test.test_asyncio``; Debian has them in ``libpython3.11-testsuite``), and
are subclassed here, not copied.  A module that imports ``*`` from here runs them, after it has
called :func:`use`.  What is excluded says why.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import tempfile
import unittest
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

# They write into the current directory, beginning with their import.
with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
    from test.test_asyncio import (
        test_buffered_proto,
        test_events,
        test_sendfile,
        test_server,
        test_sock_lowlevel,
        test_ssl,
        test_sslproto,
        test_streams,
        test_subprocess,
        test_unix_events,
    )

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap.aio import EventLoop

#: Makes the loop under test.
_factory: list[Callable[[], EventLoop]] = []
#: Tests, and transports on the port, by the module of the tests.
_ran: collections.Counter[str] = collections.Counter()
_attached: collections.Counter[str] = collections.Counter()
#: Modules whose tests connect with TCP.  The others are about pipes, signals and Unix sockets.
_WITH_TRANSPORTS = (
    "test_buffered_proto",
    "test_events",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_streams",
)


def use(factory: Callable[[], EventLoop]) -> None:
    """Run all tests on loops that this makes."""
    _factory[:] = [factory]
    _ran.clear()
    _attached.clear()


@pytest.fixture(scope="module", autouse=True)
def collections_are_cheap() -> Iterator[None]:
    """Most tests collect garbage several times, and what was loaded before them is none."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def transports_were_on_the_port() -> Iterator[None]:
    """The tests of each module had transports on the port, or they prove nothing."""
    yield
    modules = [module for module in _WITH_TRANSPORTS if _ran[module]]
    assert modules
    assert [module for module in modules if not _attached[module]] == []


if TYPE_CHECKING:
    _Case = unittest.TestCase
else:
    _Case = object


class OnPort(_Case):
    """Mixed into each class: all its loops are ours."""

    @classmethod
    def setUpClass(cls) -> None:
        directory = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.enterClassContext(contextlib.chdir(directory))
        super().setUpClass()

    def setUp(self) -> None:
        self._loops: list[EventLoop] = []
        for name in ("new_event_loop", "SelectorEventLoop"):
            patch = mock.patch.object(asyncio, name, self._make_loop)
            patch.start()
            self.addCleanup(patch.stop)
        self.addCleanup(self._count)
        super().setUp()

    def _make_loop(self, *_selector: Any) -> EventLoop:
        loop = _factory[0]()
        self._loops.append(loop)
        return loop

    create_event_loop = new_loop = _make_loop

    def _count(self) -> None:
        module = type(self).__mro__[2].__module__.rpartition(".")[2]
        _ran[module] += 1
        _attached[module] += sum(loop.stats.attached for loop in self._loops)


class TestEvents(
    OnPort,
    test_events.UnixEventLoopTestsMixin,
    test_events.SubprocessTestsMixin,
    test_events.test_utils.TestCase,
):
    pass


class TestSockets(OnPort, test_sock_lowlevel.BaseSockTestsMixin, test_events.test_utils.TestCase):
    pass


class TestSendfile(OnPort, test_sendfile.SendfileTestsBase, test_events.test_utils.TestCase):
    pass


class TestServer(OnPort, test_server.BaseStartServer, unittest.TestCase):
    pass


class TestServerOnUnixSockets(OnPort, test_server.SelectorStartServerTests):
    pass


class TestBufferedProtocol(OnPort, test_buffered_proto.BaseTestBufferedProtocol, unittest.TestCase):
    pass


class TestStartTls(OnPort, test_sslproto.BaseStartTLS, unittest.TestCase):
    pass


class TestStreams(OnPort, test_streams.StreamTests):
    pass


class TestTls(OnPort, test_ssl.TestSSL):
    pass


class TestSubprocess(OnPort, test_subprocess.SubprocessThreadedWatcherTests):
    pass


class TestSignals(OnPort, test_unix_events.SelectorEventLoopSignalTests):
    pass


class TestUnixSockets(OnPort, test_unix_events.SelectorEventLoopUnixSocketTests):
    pass


class TestUnixSendfile(OnPort, test_unix_events.SelectorEventLoopUnixSockSendfileTests):
    pass
