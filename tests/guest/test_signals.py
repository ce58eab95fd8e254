"""Rings wait on after a signal as sockets do, tested with the same tests."""

from tests.unit.test_signal_contract import *  # noqa: F403 (the tests, and the fixtures they share)

# The fixtures that choose the backend come from this folder.
del listening, port_factory, socket_pair  # type: ignore[name-defined] # noqa: F821
