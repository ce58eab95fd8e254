"""Made to be killed: accept one connection, attach it, send for ever, report accepted bytes."""

import socket
import sys

from stackmap import Event, RingPort

nic, fd = sys.argv[1], int(sys.argv[2])
with socket.socket(fileno=fd) as listener:
    accepted, _address = listener.accept()
port = RingPort(nic)
connection = port.attach(accepted)
block = bytes(range(256)) * 16
while not port.exchange(1.0):
    pass
while True:
    if connection.pending < 1 << 18:
        connection.write(block)
    for segment in port.exchange(0.0 if connection.pending < 1 << 18 else 1.0):
        if segment.event & (Event.ERROR | Event.CLOSED):
            sys.exit(0)
    print(port.stats().ring_bytes_tx, flush=True)
