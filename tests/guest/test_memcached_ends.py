"""The memcached server keeps nothing of its clients on rings either."""

from tests.unit.test_memcached_ends import *  # noqa: F403 (the tests)

# The fixtures that choose the backend come from this folder.
del listening, port_factory  # type: ignore[name-defined] # noqa: F821
