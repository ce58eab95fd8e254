"""TCP's state of one connection, as the kernel shows it to the port's application."""

from __future__ import annotations

from typing import NamedTuple


class TcpState(NamedTuple):
    """TCP's state of a connection at one moment: the values of ``ss -i`` and ``TCP_INFO``.

    Bytes are payload bytes, segments are packets of up to :attr:`mss` bytes.
    """

    #: As in ``/proc/net/tcp``: 1 is ESTABLISHED.
    state: int
    #: State of congestion control: 0 open, 1 disorder, 2 CWR, 3 recovery, 4 loss.
    ca_state: int
    #: The pair of rings that the connection is on.
    ring: int
    #: Bytes in the largest segment that is sent.
    mss: int
    #: Bytes that TCP took from transmit slots, without those it has no room for yet.
    bytes_accepted: int
    #: Bytes sent, retransmissions included.
    bytes_sent: int
    bytes_retrans: int
    #: Bytes that the peer has acknowledged.
    bytes_acked: int
    bytes_received: int
    #: Bytes in buffers that wait for their acknowledgement, and how many buffers that are: one that
    #: TCP takes in parts counts once for each.
    bytes_pinned: int
    bufs_pinned: int
    #: Bytes that TCP has, and has not sent yet.
    bytes_notsent: int
    #: Segments sent and not acknowledged.
    unacked: int
    #: Segments that may be under way.
    snd_cwnd: int
    #: Segments; 2147483647 before the first loss.
    snd_ssthresh: int
    #: Bytes that the peer lets us have under way.
    snd_wnd: int
    #: Bytes that we let the peer have under way.
    rcv_wnd: int
    #: Smoothed round trip time and its variation, in microseconds.
    srtt_us: int
    rttvar_us: int
    #: Retransmission timeout in microseconds, as of the last packet sent or received.
    rto_us: int
    #: Segments sent again since the connection began.
    total_retrans: int
