"""Rings keep the contract that every backend keeps, tested with the same tests as sockets."""

from tests.unit.test_port_contract import *  # noqa: F403 (the tests, and the fixtures they share)

# The fixtures that choose the backend come from this folder.
del listening, port_factory, socket_pair  # noqa: F821
