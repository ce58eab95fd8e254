"""A check of codec factories, for those that take one."""

from __future__ import annotations


def check_codec_factory(factory: object) -> None:
    """Check that an argument can make codecs, before a connection needs one.

    Raises:
        TypeError: it cannot be called.  Most often it is a codec instead of its class.
    """
    if not callable(factory):
        raise TypeError(
            f"give a class or a function that makes codecs, not a {type(factory).__name__}"
        )
