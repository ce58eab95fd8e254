"""h11, or a sentence that says how to get it."""

try:
    import h11
except ImportError as error:
    raise ImportError(
        "stackmap.codec.http1 needs h11; install stackmap[codecs], or h11 itself"
    ) from error

__all__ = ["h11"]
