"""The ``stackmap`` command."""
