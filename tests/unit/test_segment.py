"""Segments, the objects that an exchange returns."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from stackmap import Event, Segment


class Stub:
    """Stands for a connection."""

    def __repr__(self) -> str:
        return "<stub>"


def segment(payload: bytes = b"", event: Event = Event.NONE, errno: int = 0) -> Segment:
    connection: Any = Stub()
    return Segment(connection, memoryview(payload), event, errno)


def test_its_attributes() -> None:
    found = segment(b"payload", Event.EOF | Event.ERROR, 104)
    assert isinstance(found.connection, Stub)
    assert bytes(found.view) == found.tobytes() == b"payload"
    assert found.event == Event.EOF | Event.ERROR
    assert found.errno == 104


def test_it_says_what_it_is() -> None:
    assert repr(segment(b"payload")) == "<Segment 7 bytes of <stub>>"
    assert repr(segment(event=Event.ERROR, errno=104)) == (
        f"<Segment {Event.ERROR!r} errno=104 of <stub>>"
    )


def test_it_says_so_when_its_buffer_is_given_back() -> None:
    found = segment(b"payload")
    found.view.release()
    assert repr(found) == "<Segment of <stub>, given back>"
    with pytest.raises(ValueError, match="released"):
        found.tobytes()


def test_it_does_not_change() -> None:
    found: Any = segment()
    for name in ("connection", "view", "event", "errno"):
        with pytest.raises(AttributeError):
            setattr(found, name, None)
        with pytest.raises((AttributeError, TypeError)):
            delattr(found, name)


def test_its_view_is_a_view() -> None:
    make: Any = Segment
    with pytest.raises(TypeError):
        make(Stub(), b"payload", Event.NONE, 0)


def test_a_cycle_through_it_is_collected() -> None:
    found = segment()
    connection: Any = found.connection
    connection.last = found
    gone = weakref.ref(connection)
    del found, connection
    gc.collect()
    assert gone() is None
