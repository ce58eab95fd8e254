/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The interface between stackmap.ko and an application.
 *
 * Layouts and the NIOC* numbers are those of netmap's API version 14, so that programs written
 * for netmap work.  The additions for TCP ports are private to this module.
 *
 * A TCP port
 *
 *	open("/dev/stackmap"), NIOCCTRL with a REGISTER request for "tcp:NIC", mmap() of
 *	nr_memsize bytes at offset 0.  The NIC must be bound (its root qdisc is of kind
 *	"stackmap"), and the caller must have CAP_NET_ADMIN in the NIC's network namespace or be
 *	the user or in the group that the binding names.  That is a right to have a port: it may
 *	then attach any TCP socket of the namespace, whichever NIC its packets take.
 *
 *	A port has one or more pairs of a transmit and a receive ring.  The descriptor is that of
 *	pair 0; SMIOC_RING makes one for another pair, so that each thread has its own to sync and
 *	to wait for.  All pairs share the buffers.  Each connection belongs to one pair.
 *
 *	nr_extra_bufs buffers more than the rings have slots are the application's from the
 *	start: ni_bufs_head is the index of the first, and the first 32 bits of each hold the
 *	index of the next, 0 at the end.
 *
 *	Any buffer that is the application's may go into any transmit slot or back with any
 *	receive slot, of any pair: to forward received payload without a copy, exchange the
 *	buf_idx of the receive slot and of the transmit slot.
 *
 * Slots carry payload of attached TCP sockets.  slot->ptr names the connection:
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
 * once (NS_BUF_CHANGED): the old one stays pinned in the kernel until the peer has acknowledged
 * its last byte, and those of the slots that were sent together with it (up to 64).  A slot that
 * was not accepted keeps its buffer, and has SM_SLOT_REFUSED and an errno in ptr:
 *
 *	EAGAIN	the connection can take no more now.  All later slots of the connection in the
 *		same sync are refused too, so order is kept.  An SM_SLOT_WRITABLE event follows,
 *		or SM_SLOT_CLOSED if the connection ends before.  Once a slot was refused so, all
 *		for which no buffer is left are.
 *	EINVAL	len is 0, offset + len exceeds the buffer, or a reserved bit is set
 *	ERANGE	buf_idx is not the index of a buffer
 *	EPERM	the buffer is not the application's: it is pinned, on its way to the receive
 *		ring, or was already used by an earlier slot
 *	ENOENT	no such connection is attached to this port
 *	EPIPE, ECONNRESET, ...	the connection cannot send any more
 *
 * Receive.  Slots from head to tail are the application's; it gives them back by advancing head.
 * Slots with an SM_SLOT_* flag are events, in order with the data of their connection.  They have
 * no payload, but for SM_SLOT_OPEN and SM_SLOT_ACKED.  A slot given back with a bad buf_idx is
 * counted (bad_slots) and its place gets another buffer.  With buf_idx 0 the application keeps the
 * buffer, and the place gets a spare one: the kept buffer may go into any slot later.
 *
 * After SM_SLOT_ERROR comes SM_SLOT_CLOSED, if the error ended the connection.  It does not always:
 * with IP_RECVERR or IPV6_RECVERR, ICMP messages are errors too, and the connection goes on.
 *
 * SM_SLOT_EOF comes also when the application ends reading itself, by shutdown(SHUT_RD).  What the
 * peer sends after that is received, as an ordinary recv() would; its FIN is not told once more.
 *
 * The order of reads and writes:
 *
 *	application			kernel
 *	writes slots and buffers	reads head			(B)
 *	writes head		(A)	reads slots and buffers
 *					writes slots and buffers
 *	reads tail		(D)	writes tail			(C)
 *	reads slots and buffers
 *
 * A is a store with release semantics, and B an acquire load: the kernel sees the slots of the head
 * that it sees.  C and D are the same for slots that the kernel gives back.
 *
 * head or cur out of range: SMIOC_SYNC fails with EINVAL, poll() returns POLLERR, bad_rings
 * counts it, and the kernel resets the ring's head and cur to where they were.
 *
 * While a socket is attached, sending, receiving and splicing on its descriptor fail with EBUSY,
 * as do connect() and listen(), TCP_REPAIR and TCP_ZEROCOPY_RECEIVE.  shutdown(), close() and other
 * options work.  TCP_ULP (kTLS) and IPV6_ADDRFORM fail with EBUSY also after detaching, and a
 * sockmap does not take the socket any more; getsockopt(TCP_ULP) says "stackmap".
 *
 * Urgent data (MSG_OOB) comes in line, also a byte that was read with MSG_OOB before.  A recv()
 * that is asleep when the socket is attached stays so, and may take bytes when something else
 * wakes it; a send() that begins just then may still send: finish such calls first.  SO_RCVLOWAT
 * holds data back as it does for recv().
 *
 * TCP state
 *
 *	mmap() at offset SM_STATE_OFFSET, read-only, shows an array of struct sm_state, one
 *	record for each connection that the port may have; SMIOC_ATTACH returns its index.
 */
#ifndef _UAPI_STACKMAP_H
#define _UAPI_STACKMAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Of netmap; requests of the next version, whose layout is the same, are taken too. */
#define SM_API			14
#define SM_API_MAX		15

struct sm_slot {
	__u32 buf_idx;
	__u16 len;
	__u16 flags;
	__u64 ptr;
};

/* slot->flags */
#define NS_BUF_CHANGED		0x0001	/* from the kernel: another buffer than before */
#define NS_REPORT		0x0002	/* from the application: tell when it is acknowledged */

#define SM_PTR_ID(ptr)		((__u32)(ptr))
#define SM_PTR_OFFSET(ptr)	((__u16)((ptr) >> 32))
#define SM_PTR_FLAGS(ptr)	((__u8)((ptr) >> 48))
#define SM_PTR_ERRNO(ptr)	((__u8)((ptr) >> 56))
#define SM_PTR(id, offset)	((__u64)(id) | (__u64)(offset) << 32)
#define SM_PTR_EVENT(flags, err) ((__u64)(flags) << 48 | (__u64)(err) << 56)

#define SM_SLOT_EOF		0x01	/* the peer sent FIN */
#define SM_SLOT_ERROR		0x02	/* the connection has an error, see errno */
#define SM_SLOT_WRITABLE	0x04	/* worth trying again after EAGAIN */
#define SM_SLOT_CLOSED		0x08	/* nothing more comes with this id */
#define SM_SLOT_REFUSED		0x10	/* transmit: not accepted, see errno */
#define SM_SLOT_OPEN		0x20	/* accepted from a listener; payload: struct sm_open */
#define SM_SLOT_ACKED		0x40	/* answers NS_REPORT; payload: struct sm_acked */

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
	__s64 ring_ofs[];	/* tx rings, host tx (0: none), rx rings, host rx (0: none) */
};

struct sm_req_header {
	__u16 nr_version;
	__u16 nr_reqtype;
	__u32 nr_reserved;	/* must be 0 */
	char nr_name[64];	/* ends with a 0 */
	__u64 nr_options;	/* 0, or the address of the first option */
	__u64 nr_body;
};

struct sm_req_option {
	__u64 nro_next;		/* 0, or the address of the next option */
	__u32 nro_reqtype;
	__u32 nro_status;	/* out: errno of this option */
	__u64 nro_size;		/* 0, or the size of the option with its payload */
};

/* How large a port may grow.  With it, REGISTER says which limit it failed at. */
#define SM_OPT_LIMITS		0x5301

struct sm_opt_limits {
	struct sm_req_option opt;
	__u32 spare_bufs;	/* in: 0 for the default; out: granted.  For pinned slots */
	__u32 connections;	/* in: 0 for the default; out: granted */
	__u32 limit;		/* out: enum sm_limit */
	__u32 reserved;		/* must be 0 */
};

enum sm_limit {
	SM_LIMIT_NONE,
	SM_LIMIT_RINGS,		/* EINVAL: 1 to 64 pairs */
	SM_LIMIT_SLOTS,		/* EINVAL: 4 to 16384 a ring */
	SM_LIMIT_BUFFERS,	/* ENOSPC: 1048576 in all */
	SM_LIMIT_CONNECTIONS,	/* ENOSPC: 1048576 */
	SM_LIMIT_MEMORY,	/* ENOMEM: the machine's, or the caller's memory cgroup's */
	SM_LIMIT_PORTS,		/* ENOSPC: 65534 on the machine */
	SM_LIMIT_MEMLOCK,	/* ENOMEM: RLIMIT_MEMLOCK, unless the caller has CAP_IPC_LOCK */
	SM_LIMIT_USER_PORTS,	/* ENOSPC: 1024 of a user, unless it has CAP_SYS_RESOURCE */
};

#define SM_REQ_REGISTER		1

struct sm_req_register {
	__u64 nr_offset;	/* out: of struct sm_if in the mapping */
	__u64 nr_memsize;	/* out: bytes to map */
	__u32 nr_tx_slots;	/* in: 0 for the default; out: granted */
	__u32 nr_rx_slots;
	__u16 nr_tx_rings;	/* in: 0 for one; as many as nr_rx_rings */
	__u16 nr_rx_rings;
	__u16 nr_host_tx_rings;
	__u16 nr_host_rx_rings;
	__u16 nr_mem_id;	/* in: 0; out: identifies the mapping */
	__u16 nr_ringid;	/* must be 0 */
	__u32 nr_mode;		/* 0 or 1 (all NIC rings) */
	__u32 nr_extra_bufs;	/* in: buffers wanted beyond those in slots */
	__aligned_u64 nr_flags;	/* must be 0; aligned for 32-bit programs too */
};

#define NIOCTXSYNC		_IO('i', 148)
#define NIOCRXSYNC		_IO('i', 149)
#define NIOCCTRL		_IOWR('i', 151, struct sm_req_header)

/*
 * SMIOC_ATTACH: take over the payload of an established TCP socket.
 *	EBADF, ENOTSOCK		fd is not a socket
 *	EOPNOTSUPP		not TCP over IPv4 or IPv6 (MPTCP is another protocol)
 *	EINVAL			listening, unknown flags, or no such ring
 *	ENOTCONN		not established, nor failed without anybody having been told: such
 *				a connection gives what it had received, SM_SLOT_ERROR and
 *				SM_SLOT_CLOSED
 *	EBUSY			taken by kTLS, sockmap, KCM or SMC, or in TCP_REPAIR mode, or a call
 *				waits to send on it
 *	EALREADY		attached already, to this port or another
 *	EXDEV			of another network namespace
 *	ENOSPC			the port has all the connections it was registered for
 *
 * With SM_ATTACH_LISTENER, fd is a listening socket, and what accept() returns from it is attached
 * already: no byte can go astray in between, and no call is needed per connection.  A connection's
 * first slot is then an SM_SLOT_OPEN event; those of one listener come in the order in which
 * accept() returned the connections to one thread, ring by ring.  Where a connection cannot be
 * attached, accept() fails: with ENOSPC, leaving it in the backlog, or with the errno above,
 * closing it.  An accept() that sleeps when its listener is attached returns an ordinary socket.
 *	EINVAL			not listening
 */
struct sm_attach {
	__s32 fd;
	__u32 flags;		/* SM_ATTACH_* */
	__u32 ring;		/* in: pair or SM_RING_ANY; out: pair */
	__u32 id;		/* out */
	__u32 record;		/* out: index of its struct sm_state; of a listener 0 */
	__u32 reserved;		/* must be 0 */
};

#define SM_ATTACH_LISTENER	1

/* The pair whose thread runs on the CPU that receives the connection's packets. */
#define SM_RING_ANY		0xffffffff

/* Payload of an SM_SLOT_OPEN slot. */
struct sm_open {
	__u32 listener;		/* id of the listener */
	__u32 record;		/* index of the connection's struct sm_state */
	__u16 family;		/* AF_INET or AF_INET6 */
	__be16 port;		/* the peer's */
	__u8 addr[16];		/* the peer's; IPv4 in the first 4 bytes */
};

/*
 * Payload of an SM_SLOT_ACKED slot.  One event may stand for several slots with NS_REPORT: all that
 * end within these bytes.  It is not in order with received data, and pausing does not hold it
 * back.
 */
struct sm_acked {
	__u64 bytes;		/* acknowledged, of those that TCP took from slots */
};

/*
 * SMIOC_DETACH: give the socket back.  What is in the receive ring comes first, up to the
 * SM_SLOT_CLOSED event; everything after it is read from the socket.  A listener accepts ordinary
 * connections again, without any event.  send(MSG_ZEROCOPY) fails with ENOBUFS until TCP has sent
 * what it took from slots.
 *	ENOENT			no such connection or listener
 *
 * SMIOC_RXCTL: with SM_RX_PAUSE, take no more data from TCP, so that its window closes, until the
 * call is made without it.  While a connection is paused neither data nor SM_SLOT_EOF is put into
 * the ring, but SM_SLOT_ERROR is, at once, and SM_SLOT_CLOSED if the error ended the connection:
 * what TCP still had is not received then.
 */
struct sm_conn_ctl {
	__u32 id;
	__u32 flags;
};

#define SM_RX_PAUSE		1

/*
 * SMIOC_CREDITS: let the connection put so many more slots of data into the receive ring; then it
 * is as if it were paused, until it gets more.  At first it may put any number: counting begins
 * with the first call, from zero, and ends with SM_CREDITS_UNLIMITED.  Events take none.
 *	ENOENT			no such connection
 */
struct sm_credits {
	__u32 id;
	__u32 slots;
};

#define SM_CREDITS_UNLIMITED	0xffffffff

/*
 * SMIOC_RING: a descriptor for another pair of rings; the call returns it, with close-on-exec.  It
 * takes SMIOC_SYNC, NIOCTXSYNC, NIOCRXSYNC and poll().  Once the port is closed it answers ENXIO.
 *	EINVAL			no such pair, or flags not 0
 */
struct sm_ring_req {
	__u32 ring;
	__u32 flags;		/* must be 0 */
};

/*
 * SMIOC_SYNC: any of the steps below, in this order, in one call.
 *	EINVAL			a ring was bad and has been reset; or unknown flags, what needs a
 *				flag that is not set, or spin_us above 1000
 *	EINTR			a signal's handler ended the wait; what came before it is done, and
 *				the call may be made again as it was.  A process that is stopped
 *				and continued waits on.
 */
struct sm_sync {
	__u32 flags;		/* SM_SYNC_* */
	__u32 spin_us;		/* with POLL: go on this long, to 1000, if nothing arrives; or 0 */
	__s64 deadline_ns;	/* with WAIT: CLOCK_MONOTONIC, negative: none; or 0 */
};

#define SM_SYNC_TX		1	/* send what is between the last head and head */
#define SM_SYNC_RX		2	/* take back slots, publish what arrived */
#define SM_SYNC_POLL		4	/* poll the NIC in this call (Linux busy polling) */
#define SM_SYNC_WAIT		8	/* with RX: sleep until something comes, or the deadline */

/*
 * TCP's state of one connection, as getsockopt(TCP_INFO) gives it.  Written by the kernel after
 * every packet with payload that TCP received for the connection, and every sync that sent for it;
 * at most one jiffy after every other packet that TCP received or sent, and after a buffer was
 * released; later only while a system call holds the socket.
 *
 * A reader takes seq, reads what it wants, and takes seq again: the values belong together if
 * both were the same even number.  id tells whether the record is still the connection's.
 */
struct sm_state {
	__u32 seq;
	__u32 id;		/* of the connection; 0: not in use */
	__u8 state;		/* TCP_ESTABLISHED, ... */
	__u8 ca_state;		/* TCP_CA_Open, ... */
	__u16 ring;
	__u32 mss;		/* bytes, of what we send */
	__u64 bytes_accepted;	/* payload that TCP took from slots: without rests of slots */
	__u64 bytes_sent;	/* payload sent, retransmissions included */
	__u64 bytes_retrans;
	__u64 bytes_acked;	/* by the peer */
	__u64 bytes_received;
	__u32 bytes_pinned;	/* payload in buffers that wait for their ACK */
	__u32 bufs_pinned;	/* as many; once for each part, where TCP takes one in parts */
	__u32 bytes_notsent;	/* accepted by TCP, not sent yet */
	__u32 unacked;		/* segments sent and not acknowledged */
	__u32 snd_cwnd;		/* segments */
	__u32 snd_ssthresh;	/* segments */
	__u32 snd_wnd;		/* bytes the peer lets us have under way */
	__u32 rcv_wnd;		/* bytes we let the peer have under way */
	__u32 srtt_us;
	__u32 rttvar_us;
	__u32 rto_us;
	__u32 total_retrans;	/* segments */
	__u8 reserved[24];
};

#define SM_STATE_OFFSET		0x10000000000ULL

/* Attributes of the qdisc "stackmap" (in TCA_OPTIONS): a user and a group that may open ports. */
enum {
	SM_TCA_UNSPEC,
	SM_TCA_UID,		/* u32 */
	SM_TCA_GID,		/* u32 */
	SM_TCA_MAX = SM_TCA_GID
};

struct sm_stats {
	__u64 rx_bytes;			/* payload put into the receive ring */
	__u64 tx_bytes;			/* payload given to TCP: without rests of slots */
	__u64 rx_slots;
	__u64 slots_sent;		/* transmit slots accepted */
	__u64 slots_released_ack;	/* buffers released: last byte acknowledged */
	__u64 slots_released_reset;	/* buffers released: connection reset or aborted */
	__u64 slots_pinned;		/* buffers that wait for their ACK now */
	__u64 slots_again;		/* refused with EAGAIN */
	__u64 bad_slots;		/* refused with EINVAL, ERANGE, EPERM; or given back bad */
	__u64 unknown_conn;		/* refused with ENOENT */
	__u64 dead_conn;		/* refused with EPIPE, ECONNRESET, ... */
	__u64 bad_rings;		/* head or cur out of range */
	__u64 ring_stalls;		/* transmit ring stopped: no spare buffer */
	__u64 syncs;
	__u64 direct_packets;		/* sent past IP and the neighbour */
	__u64 direct_received;		/* packets received past IP */
	__u64 connections;		/* attached now */
	__u64 bufs_free;		/* spare buffers now */
};

#define SMIOC_ATTACH		_IOWR('i', 192, struct sm_attach)
#define SMIOC_DETACH		_IOW('i', 193, struct sm_conn_ctl)
#define SMIOC_RXCTL		_IOW('i', 194, struct sm_conn_ctl)
#define SMIOC_SYNC		_IOW('i', 195, struct sm_sync)
#define SMIOC_STATS		_IOR('i', 196, struct sm_stats)
#define SMIOC_RING		_IOW('i', 197, struct sm_ring_req)
#define SMIOC_CREDITS		_IOW('i', 198, struct sm_credits)

#endif /* _UAPI_STACKMAP_H */
