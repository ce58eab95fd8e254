"""The addresses of the two hosts, on eth0 of each."""

from __future__ import annotations

SERVER_ADDRESS = "10.77.0.1"
CLIENT_ADDRESS = "10.77.0.2"
SERVER_IPV6 = "fd77::1"
CLIENT_IPV6 = "fd77::2"
SERVER_MAC = "02:77:00:00:00:01"
CLIENT_MAC = "02:77:00:00:00:02"
