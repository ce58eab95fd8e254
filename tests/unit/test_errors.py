"""The kinds of errors, for every errno that there is."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from stackmap.errors import (
    BrokenError,
    BusyError,
    ClosedError,
    WouldBlockError,
    broken,
    make_error,
    port_closed,
)

KINDS = (ClosedError, BrokenError, BusyError, WouldBlockError)


@pytest.mark.parametrize("kind", [*KINDS, OSError])
def test_an_error_is_of_its_kind_and_of_pythons_class(kind: type[OSError]) -> None:
    for code in errno.errorcode:
        error = make_error(kind, code)
        assert isinstance(error, kind)
        assert isinstance(error, type(OSError(code, "")))
        assert (error.errno, str(error)) == (code, f"[Errno {code}] {os.strerror(code)}")
        assert sum(isinstance(error, other) for other in KINDS) == (kind is not OSError)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args) == (type(error), error.args)


def test_it_can_have_a_sentence() -> None:
    error = make_error(BusyError, errno.EEXIST, "it is there already")
    assert str(error) == f"[Errno {errno.EEXIST}] it is there already"
    assert type(error) is type(make_error(BusyError, errno.EEXIST))


def test_those_that_have_names() -> None:
    assert isinstance(broken(errno.ETIMEDOUT), TimeoutError)
    assert isinstance(port_closed(), ValueError)
    assert isinstance(port_closed(), ClosedError)
