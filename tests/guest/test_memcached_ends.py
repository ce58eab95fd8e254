"""The memcached server keeps nothing of its clients on rings either."""

from tests.unit.test_memcached_ends import *  # noqa: F403 (the tests)

# The fixtures that choose the backend come from this folder.  The test's seconds are minutes in an
# emulated guest; rings are tried with each model by the others.
del listening, port_factory, test_other_models_leave_nothing_either  # type: ignore[name-defined] # noqa: F821
