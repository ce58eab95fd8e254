"""Rings give a transport what every backend gives it, tested with the same tests as sockets."""

from tests.unit.test_transport_contract import *  # noqa: F403 (the tests, and their fixtures)

# The fixtures that choose the backend come from this folder.
del listening, port_factory, socket_pair  # type: ignore[name-defined] # noqa: F821
