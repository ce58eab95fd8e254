"""The package's own exceptions: each says what failed, why, and what to do, in one sentence."""


class StackmapError(Exception):
    """Something a person can put right; ``str()`` is the sentence to show them."""


class BackendUnavailableError(StackmapError):
    """The requested backend cannot be used here (no module, no right, no bound NIC)."""
