/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The interface between stackmap.ko and an application.
 *
 * Layouts and the NIOC* numbers are those of netmap's API version 14, so that programs written
 * for netmap find what they know.  What TCP ports add is private to this module.
 *
 * A TCP port
 *
 *	open("/dev/stackmap"), NIOCCTRL with a REGISTER request for "tcp:NIC", mmap() of
 *	nr_memsize bytes at offset 0.  The NIC must be bound (its root qdisc is of kind
 *	"stackmap").  The port has one transmit and one receive ring.
 *
 * Slots carry payload of attached TCP sockets.  slot->ptr says whose:
 *
 *	bits  0..31	connection id, as returned by SMIOC_ATTACH
 *	bits 32..47	offset of the payload in the buffer, in bytes
 *	bits 48..55	SM_SLOT_* flags
 *	bits 56..63	errno that goes with SM_SLOT_ERROR and SM_SLOT_REFUSED
 *
 * slot->len is the number of payload bytes; offset + len must not exceed nr_buf_size.
 *
 * Transmit.  The application fills slots from head on, advances head and calls SMIOC_SYNC.
 * Slots of one connection are sent in order.  A slot that was accepted gets another buffer at
 * once (NS_BUF_CHANGED): the old one stays pinned in the kernel until the peer acknowledged its
 * last byte.  A slot that was not accepted keeps its buffer, and has SM_SLOT_REFUSED and an
 * errno in ptr:
 *
 *	EAGAIN	the connection can take no more now.  All later slots of the connection in the
 *		same sync are refused too, so order is kept.  An SM_SLOT_WRITABLE event follows.
 *	EINVAL	len is 0, offset + len exceeds the buffer, or a reserved bit is set
 *	ERANGE	buf_idx is not the index of a buffer
 *	EPERM	the buffer is not the application's: it is pinned, on its way to the receive
 *		ring, or was already used by an earlier slot
 *	ENOENT	no such connection is attached to this port
 *	EPIPE, ECONNRESET, ...	the connection cannot send any more
 *
 * Receive.  Slots from head to tail are the application's; it gives them back by advancing head.
 * Slots without payload are events (SM_SLOT_EOF, _ERROR, _WRITABLE, _CLOSED), in order with the
 * data of their connection.  A slot given back with a bad buf_idx is counted (bad_slots) and its
 * place gets another buffer.
 *
 * head or cur out of range: SMIOC_SYNC fails with EINVAL, poll() returns POLLERR, bad_rings
 * counts it, and the kernel resets the ring's head and cur to where they were.
 *
 * While a socket is attached, sending, receiving and splicing on its descriptor fail with EBUSY,
 * as do connect() and listen().  shutdown(), close(), getsockopt() and setsockopt() work.
 */
#ifndef _UAPI_STACKMAP_H
#define _UAPI_STACKMAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define SM_API			14

struct sm_slot {
	__u32 buf_idx;
	__u16 len;
	__u16 flags;
	__u64 ptr;
};

/* slot->flags, written by the kernel: the slot has another buffer than before */
#define NS_BUF_CHANGED		0x0001

#define SM_PTR_ID(ptr)		((__u32)(ptr))
#define SM_PTR_OFFSET(ptr)	((__u16)((ptr) >> 32))
#define SM_PTR_FLAGS(ptr)	((__u8)((ptr) >> 48))
#define SM_PTR_ERRNO(ptr)	((__u8)((ptr) >> 56))
#define SM_PTR(id, offset)	((__u64)(id) | (__u64)(offset) << 32)
#define SM_PTR_EVENT(flags, err) ((__u64)(flags) << 48 | (__u64)(err) << 56)

#define SM_SLOT_EOF		0x01	/* the peer sent FIN */
#define SM_SLOT_ERROR		0x02	/* the connection failed, see errno */
#define SM_SLOT_WRITABLE	0x04	/* worth trying again after EAGAIN */
#define SM_SLOT_CLOSED		0x08	/* nothing more comes with this id */
#define SM_SLOT_REFUSED		0x10	/* transmit: not accepted, see errno */

struct sm_ring {
	__s64 buf_ofs;		/* from this structure to buffer 0 */
	__u32 num_slots;
	__u32 nr_buf_size;
	__u16 ringid;
	__u16 dir;		/* 0 transmit, 1 receive */
	__u32 head;		/* first slot the application owns; application writes */
	__u32 cur;		/* wake-up point; application writes */
	__u32 tail;		/* first slot the kernel owns; kernel writes */
	__u32 flags;
	__u32 pad;
	struct {
		__s64 tv_sec;
		__s64 tv_usec;
	} ts;
	__u64 offset_mask;
	__u64 buf_align;
	__u8 sem[128] __attribute__((aligned(128)));
	struct sm_slot slot[];
};

struct sm_if {
	char ni_name[16];
	__u32 ni_version;
	__u32 ni_flags;
	__u32 ni_tx_rings;
	__u32 ni_rx_rings;
	__u32 ni_bufs_head;
	__u32 ni_host_tx_rings;
	__u32 ni_host_rx_rings;
	__u32 spare[3];
	__s64 ring_ofs[4];	/* tx, host tx (0: none), rx, host rx (0: none) */
};

struct sm_req_header {
	__u16 nr_version;
	__u16 nr_reqtype;
	__u32 nr_reserved;	/* must be 0 */
	char nr_name[64];
	__u64 nr_options;	/* none is known: must be 0 */
	__u64 nr_body;
};

#define SM_REQ_REGISTER		1

struct sm_req_register {
	__u64 nr_offset;	/* out: of struct sm_if in the mapping */
	__u64 nr_memsize;	/* out: bytes to map */
	__u32 nr_tx_slots;	/* in: 0 for the default; out: granted */
	__u32 nr_rx_slots;
	__u16 nr_tx_rings;
	__u16 nr_rx_rings;
	__u16 nr_host_tx_rings;
	__u16 nr_host_rx_rings;
	__u16 nr_mem_id;	/* out: identifies the mapping */
	__u16 nr_ringid;	/* must be 0 */
	__u32 nr_mode;		/* 0 or 1 (all NIC rings) */
	__u32 nr_extra_bufs;	/* out: 0 */
	__u64 nr_flags;		/* must be 0 */
};

#define NIOCTXSYNC		_IO('i', 148)
#define NIOCRXSYNC		_IO('i', 149)
#define NIOCCTRL		_IOWR('i', 151, struct sm_req_header)

/*
 * SMIOC_ATTACH: take over the payload of an established TCP socket.
 *	EBADF, ENOTSOCK		fd is not a socket
 *	EOPNOTSUPP		not TCP over IPv4 or IPv6
 *	EINVAL			listening, or flags not 0
 *	ENOTCONN		not established
 *	EBUSY			taken by kTLS, sockmap or KCM, or in TCP_REPAIR mode
 *	EALREADY		attached already, to this port or another
 *	EXDEV			of another network namespace
 */
struct sm_attach {
	__s32 fd;
	__u32 flags;		/* must be 0 */
	__u32 id;		/* out */
	__u32 reserved;		/* must be 0 */
};

/*
 * SMIOC_DETACH: give the socket back.  What is in the receive ring comes first, up to the
 * SM_SLOT_CLOSED event; everything after it is read from the socket.
 *	ENOENT			no such connection
 *
 * SMIOC_RXCTL: with SM_RX_PAUSE, take no more data from TCP, so that its window closes.
 */
struct sm_conn_ctl {
	__u32 id;
	__u32 flags;
};

#define SM_RX_PAUSE		1

struct sm_sync {
	__u32 flags;		/* SM_SYNC_* */
	__u32 spin_us;		/* with POLL: keep polling this long while nothing arrives */
};

#define SM_SYNC_TX		1	/* send what is between the last head and head */
#define SM_SYNC_RX		2	/* take back slots, publish what arrived */
#define SM_SYNC_POLL		4	/* poll the NIC in this call (Linux busy polling) */

struct sm_stats {
	__u64 rx_bytes;			/* payload put into the receive ring */
	__u64 tx_bytes;			/* payload accepted from the transmit ring */
	__u64 rx_slots;
	__u64 slots_sent;		/* transmit slots accepted */
	__u64 slots_released_ack;	/* buffers released: last byte acknowledged */
	__u64 slots_released_reset;	/* buffers released: connection reset or aborted */
	__u64 slots_pinned;		/* buffers that wait for their ACK now */
	__u64 slots_again;		/* refused with EAGAIN */
	__u64 bad_slots;		/* refused with EINVAL, ERANGE, EPERM */
	__u64 unknown_conn;		/* refused with ENOENT */
	__u64 dead_conn;		/* refused with EPIPE, ECONNRESET, ... */
	__u64 bad_rings;		/* head or cur out of range */
	__u64 ring_stalls;		/* transmit ring stopped: no spare buffer */
	__u64 syncs;
	__u64 connections;		/* attached now */
	__u64 bufs_free;		/* spare buffers now */
};

#define SMIOC_ATTACH		_IOWR('i', 192, struct sm_attach)
#define SMIOC_DETACH		_IOW('i', 193, struct sm_conn_ctl)
#define SMIOC_RXCTL		_IOW('i', 194, struct sm_conn_ctl)
#define SMIOC_SYNC		_IOW('i', 195, struct sm_sync)
#define SMIOC_STATS		_IOR('i', 196, struct sm_stats)

#endif /* _UAPI_STACKMAP_H */
