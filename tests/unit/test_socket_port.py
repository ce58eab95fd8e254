"""Behaviour of the sockets backend only."""

from __future__ import annotations

import socket

from stackmap import Event, SocketPort
from tests.unit.link import reset


def test_a_reset_with_a_queue_reports_no_writable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, SocketPort() as port:
        peer = socket.create_connection(listener.getsockname())
        accepted, _address = listener.accept()
        connection = port.attach(accepted)
        connection.write(bytes(1 << 24))
        assert connection.pending > 0
        reset(peer)
        events = []
        while Event.CLOSED not in events:
            events += [segment.event for segment in port.exchange(1.0)]
        assert events == [Event.ERROR, Event.CLOSED]


def test_a_closed_listener_is_forgotten() -> None:
    with SocketPort() as port:
        for _ in range(3):
            port.attach_listener(socket.create_server(("127.0.0.1", 0))).close()
        assert port._listeners == []
