"""TCP_INFO, under the names of the module's records."""

from __future__ import annotations

import socket
import struct

#: Where struct tcp_info has what a record has under the same name.
TCP_INFO = {
    "state": ("B", 0), "ca_state": ("B", 1), "rto_us": ("I", 8), "mss": ("I", 16),
    "unacked": ("I", 24), "srtt_us": ("I", 68), "rttvar_us": ("I", 72),
    "snd_ssthresh": ("I", 76), "snd_cwnd": ("I", 80), "total_retrans": ("I", 100),
    "bytes_acked": ("Q", 120), "bytes_received": ("Q", 128), "bytes_notsent": ("I", 144),
    "bytes_sent": ("Q", 200), "bytes_retrans": ("Q", 208), "snd_wnd": ("I", 228),
    "rcv_wnd": ("I", 232),
}  # fmt: skip


def tcp_info(sock: socket.socket) -> dict[str, int]:
    """TCP_INFO, as far as this kernel has it."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    found = {}
    for name, (kind, at) in TCP_INFO.items():
        if at + struct.calcsize(kind) <= len(raw):
            found[name] = struct.unpack_from("=" + kind, raw, at)[0]
    assert len(found) >= 16
    return found
