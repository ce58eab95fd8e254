"""Rings keep the contracts that every backend keeps, tested with the same tests as sockets."""

# The tests, and the fixtures they share.
from tests.unit.test_grants_contract import *  # noqa: F403
from tests.unit.test_listener_contract import *  # noqa: F403
from tests.unit.test_mistakes_contract import *  # noqa: F403
from tests.unit.test_port_contract import *  # noqa: F403
from tests.unit.test_reports_contract import *  # noqa: F403

# The fixtures that choose the backend come from this folder.
del listening, port_factory, socket_pair  # type: ignore[name-defined]  # noqa: F821
