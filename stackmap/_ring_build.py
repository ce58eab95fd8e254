"""Builds :mod:`stackmap._ring_c`: ports on rings, but for their hot calls (``_fast*.c``)."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

#: The kernel's structures as Python sees them; the C compiler checks them against stackmap.h.
_KERNEL = """
struct sm_ring;
struct sm_if { unsigned int ni_bufs_head; ...; };
struct sm_state {
    unsigned int id;
    unsigned char state, ca_state;
    unsigned short ring;
    unsigned int mss;
    unsigned long long bytes_accepted, bytes_sent, bytes_retrans, bytes_acked, bytes_received;
    unsigned int bytes_pinned, bufs_pinned, bytes_notsent, unacked;
    unsigned int snd_cwnd, snd_ssthresh, snd_wnd, rcv_wnd;
    unsigned int srtt_us, rttvar_us, rto_us, total_retrans;
    ...;
};
#define SM_RING_ANY ...
enum sm_limit {
    SM_LIMIT_NONE, SM_LIMIT_RINGS, SM_LIMIT_SLOTS, SM_LIMIT_BUFFERS, SM_LIMIT_CONNECTIONS,
    SM_LIMIT_MEMORY, SM_LIMIT_PORTS, SM_LIMIT_MEMLOCK, SM_LIMIT_USER_PORTS, ...
};
"""

ffibuilder = FFI()
ffibuilder.cdef(_KERNEL + (_HERE / "_ring.h").read_text())
ffibuilder.set_source(
    "stackmap._ring_c",
    '#include <stddef.h>\n#include <stdint.h>\n#include "stackmap.h"\n#include "_ring.h"\n',
    sources=["stackmap/_ring.c"],
    depends=["stackmap/_ring.h", "stackmap/_ring_hot.h", "kmod/uapi/stackmap.h"],
    include_dirs=["stackmap", "kmod/uapi"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
