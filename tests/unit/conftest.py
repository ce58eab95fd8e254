"""Settings of the tests that need neither root nor a module."""

from __future__ import annotations

from hypothesis import settings

# The machine may be busy: no example has a time limit of its own.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
