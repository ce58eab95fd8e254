/*
 * The hot loops of ports on rings.
 *
 * Ring positions follow netmap: [head, tail) is ours.  Everything the kernel must see is stored
 * before head is released (A), everything it shows is read after tail was acquired (D): the letters
 * are those of kmod/uapi/stackmap.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "stackmap.h"

#include "_ring.h"
#include "_ring_hot.h"

/* Watched files are looked at without waiting now and then, also while the rings are busy. */
#define SYNCS_PER_WATCH 16
/* Slots per exchange up to which a port counts as quiet. */
#define QUIET 3

_Static_assert(SMR_UNLIMITED == SM_CREDITS_UNLIMITED, "SMR_UNLIMITED is the kernel's");
_Static_assert(sizeof(struct smr_stats) == sizeof(struct sm_stats), "smr_stats mirrors sm_stats");

static uint32_t next(const struct sm_ring *ring, uint32_t i)
{
	return i + 1 == ring->num_slots ? 0 : i + 1;
}

static uint32_t prev(const struct sm_ring *ring, uint32_t i)
{
	return i ? i - 1 : ring->num_slots - 1;
}

static int open_rings(struct smr_port *port, const struct sm_req_register *body)
{
	port->size = body->nr_memsize;
	port->mem = mmap(NULL, port->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 port->fd, 0);
	if (port->mem == MAP_FAILED) {
		port->mem = NULL;
		return -errno;
	}
	port->nifp = (const struct sm_if *)(port->mem + body->nr_offset);
	return 0;
}

static int open_states(struct smr_port *port, uint32_t records)
{
	void *states;

	port->states_size = records * sizeof(struct sm_state);
	states = mmap(NULL, port->states_size, PROT_READ, MAP_SHARED, port->fd, SM_STATE_OFFSET);
	if (states == MAP_FAILED)
		return -errno;
	port->states = states;
	port->records = records;
	return 0;
}

int smr_open(struct smr_port *port, const char *device, const char *name, struct smr_sizes *sizes)
{
	struct sm_opt_limits limits = {
		.opt = { .nro_reqtype = SM_OPT_LIMITS, .nro_size = sizeof(limits) },
		.spare_bufs = sizes->spare_buffers,
		.connections = sizes->connections,
	};
	struct sm_req_register body = {
		.nr_tx_slots = sizes->tx_slots,
		.nr_rx_slots = sizes->rx_slots,
		.nr_tx_rings = sizes->rings,
		.nr_rx_rings = sizes->rings,
		.nr_extra_bufs = sizes->extra_buffers,
	};
	struct sm_req_header header = {
		.nr_version = SM_API,
		.nr_reqtype = SM_REQ_REGISTER,
		.nr_options = (uintptr_t)&limits,
		.nr_body = (uintptr_t)&body,
	};
	int err;

	if (snprintf(header.nr_name, sizeof(header.nr_name), "tcp:%s", name) >=
	    (int)sizeof(header.nr_name))
		return -ENAMETOOLONG;
	port->fd = open(device, O_RDWR | O_CLOEXEC);
	if (port->fd < 0)
		return -errno;
	if (ioctl(port->fd, NIOCCTRL, &header)) {
		err = -errno;
		sizes->limit = limits.limit;
		goto err;
	}
	err = open_rings(port, &body);
	if (!err)
		err = open_states(port, limits.connections);
	if (err)
		goto err;
	*sizes = (struct smr_sizes){
		.rings = body.nr_tx_rings,
		.tx_slots = body.nr_tx_slots,
		.rx_slots = body.nr_rx_slots,
		.spare_buffers = limits.spare_bufs,
		.connections = limits.connections,
		.extra_buffers = body.nr_extra_bufs,
	};
	return 0;
err:
	smr_close(port);
	return err;
}

void smr_close(struct smr_port *port)
{
	if (port->mem)
		munmap(port->mem, port->size);
	port->mem = NULL;
	if (port->states)
		munmap((void *)port->states, port->states_size);
	port->states = NULL;
	port->records = 0;
	if (port->fd >= 0)
		close(port->fd);
	port->fd = -1;
}

/* The port's descriptor is that of pair 0; the others have their own. */
int smr_open_pair(struct smr_pair *pair, const struct smr_port *port, uint32_t index)
{
	const struct sm_if *nifp = port->nifp;
	struct sm_ring_req req = { .ring = index };

	pair->port = port;
	pair->tx = (struct sm_ring *)((char *)nifp + nifp->ring_ofs[index]);
	pair->rx = (struct sm_ring *)((char *)nifp + nifp->ring_ofs[nifp->ni_tx_rings + 1 + index]);
	pair->fd = index ? ioctl(port->fd, SMIOC_RING, &req) : port->fd;
	return pair->fd < 0 ? -errno : 0;
}

/*
 * Keep others out of the pair until smr_leave().  Refused while a thread is in it; waited for while
 * it is only helped, which takes no longer than a system call.
 */
int smr_enter(struct smr_pair *pair)
{
	int was;

	do {
		was = SMR_FREE;
		if (__atomic_compare_exchange_n(&pair->busy, &was, SMR_BUSY, 0, __ATOMIC_ACQUIRE,
						__ATOMIC_RELAXED))
			return 0;
		sched_yield();
	} while (was == SMR_HELPED);
	return -EBUSY;
}

void smr_leave(struct smr_pair *pair)
{
	__atomic_store_n(&pair->busy, SMR_FREE, __ATOMIC_RELEASE);
}

/* Before smr_close(), and between smr_enter() and the end: smr_exchange() needs the memory. */
void smr_close_pair(struct smr_pair *pair)
{
	if (pair->fd >= 0 && pair->fd != pair->port->fd)
		close(pair->fd);
	pair->fd = -1;
}

int smr_attach(const struct smr_port *port, int fd, int listener, struct smr_attached *attached)
{
	struct sm_attach req = {
		.fd = fd,
		.flags = listener ? SM_ATTACH_LISTENER : 0,
		.ring = attached->ring,
	};

	if (ioctl(port->fd, SMIOC_ATTACH, &req))
		return -errno;
	attached->ring = req.ring;
	attached->id = req.id;
	attached->record = req.record;
	return 0;
}

int smr_detach(const struct smr_port *port, uint32_t id)
{
	struct sm_conn_ctl req = { .id = id };

	return ioctl(port->fd, SMIOC_DETACH, &req) ? -errno : 0;
}

int smr_pause(const struct smr_port *port, uint32_t id, int paused)
{
	struct sm_conn_ctl req = { .id = id, .flags = paused ? SM_RX_PAUSE : 0 };

	return ioctl(port->fd, SMIOC_RXCTL, &req) ? -errno : 0;
}

/* Let a connection open so many more receive slots; SMR_UNLIMITED: any number. */
int smr_grant(const struct smr_port *port, uint32_t id, uint32_t slots)
{
	struct sm_credits req = { .id = id, .slots = slots };

	return ioctl(port->fd, SMIOC_CREDITS, &req) ? -errno : 0;
}

int smr_stats(const struct smr_port *port, struct smr_stats *stats)
{
	return ioctl(port->fd, SMIOC_STATS, stats) ? -errno : 0;
}

/* Copy the record of a connection as it was at one moment. */
int smr_state(const struct smr_port *port, uint32_t record, uint32_t id, struct sm_state *state)
{
	const struct sm_state *shown;
	uint32_t seq;

	if (record >= port->records)
		return -ENOENT;
	shown = &port->states[record];
	do {
		/* Pairs with the kernel's barriers around its writes to the record. */
		seq = __atomic_load_n(&shown->seq, __ATOMIC_ACQUIRE);
		*state = *(const volatile struct sm_state *)shown;
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (seq & 1 || __atomic_load_n(&shown->seq, __ATOMIC_RELAXED) != seq);
	return state->id == id ? 0 : -ENOENT;
}

char *smr_buffer(const struct smr_pair *pair, uint32_t buf)
{
	return (char *)pair->rx + pair->rx->buf_ofs + (size_t)buf * pair->rx->nr_buf_size;
}

/*
 * Copy data into transmit slots of a connection.  Returns the bytes taken: fewer than len when
 * the ring is full, or as long as refused slots wait for the caller, which later bytes must not
 * pass.  Small writes to the same connection share the last slot.
 */
size_t smr_write(struct smr_pair *pair, uint32_t id, const char *data, size_t len)
{
	struct sm_ring *ring = pair->tx;
	uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);	/* (D) */
	uint32_t size = ring->nr_buf_size;
	size_t left = len, n;

	if (pair->found[1])
		return 0;
	if (left && pair->tx_head != pair->tx_synced) {
		struct sm_slot *slot = &ring->slot[prev(ring, pair->tx_head)];

		if (slot->ptr == SM_PTR(id, 0) && slot->len < size) {
			n = left < size - slot->len ? left : size - slot->len;
			memcpy(smr_buffer(pair, slot->buf_idx) + slot->len, data, n);
			slot->len += n;
			data += n;
			left -= n;
		}
	}
	while (left && pair->tx_head != tail) {
		struct sm_slot *slot = &ring->slot[pair->tx_head];

		n = left < size ? left : size;
		memcpy(smr_buffer(pair, slot->buf_idx), data, n);
		slot->len = n;
		slot->flags = 0;
		slot->ptr = SM_PTR(id, 0);
		pair->tx_head = next(ring, pair->tx_head);
		data += n;
		left -= n;
	}
	return len - left;
}

/*
 * Send a buffer that is ours.  Returns the one that the slot had, which is ours instead; 0 if
 * smr_write() would take nothing.
 */
uint32_t smr_send_buffer(struct smr_pair *pair, uint32_t id, uint32_t buf, uint32_t offset,
			 uint32_t len)
{
	struct sm_slot *slot = &pair->tx->slot[pair->tx_head];
	uint32_t spare = slot->buf_idx;

	if (pair->found[1] ||
	    pair->tx_head == __atomic_load_n(&pair->tx->tail, __ATOMIC_ACQUIRE))	/* (D) */
		return 0;
	*slot = (struct sm_slot){
		.buf_idx = buf,
		.len = len,
		.flags = NS_BUF_CHANGED,
		.ptr = SM_PTR(id, offset),
	};
	/* Pairs with submit(), which another thread may call meanwhile. */
	__atomic_store_n(&pair->tx_head, next(pair->tx, pair->tx_head), __ATOMIC_RELEASE);
	return spare;
}

/* Keep a received buffer: its slot gives back a spare one instead. */
void smr_keep(const struct smr_pair *pair, uint32_t slot, uint32_t spare)
{
	pair->rx->slot[slot].buf_idx = spare;
	pair->rx->slot[slot].flags = NS_BUF_CHANGED;
}

/* What a slot says, in the library's terms. */
static struct smr_segment segment_of(const struct sm_slot *slot)
{
	return (struct smr_segment){
		.id = SM_PTR_ID(slot->ptr),
		.start = SM_PTR_OFFSET(slot->ptr),
		.buf = slot->buf_idx,
		.len = slot->len,
		.flags = SM_PTR_FLAGS(slot->ptr),
		.err = SM_PTR_ERRNO(slot->ptr),
	};
}

/* Add the slots processed since the last time that the kernel refused to those found before. */
static int collect_refused(struct smr_pair *pair)
{
	const struct sm_ring *ring = pair->tx;
	/* tail is one before the first slot that was not processed */
	uint32_t done = next(ring, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE));	/* (D) */
	int n = pair->found[1];

	while (pair->tx_synced != done && pair->tx_synced != pair->tx_head) {
		const struct sm_slot *slot = &ring->slot[pair->tx_synced];

		if (SM_PTR_FLAGS(slot->ptr) & SM_SLOT_REFUSED)
			pair->refused[n++] = segment_of(slot);
		pair->tx_synced = next(ring, pair->tx_synced);
	}
	pair->found[1] = n;
	return n;
}

/* Collect what the kernel has shown: received slots, and their small payloads in staging. */
static int collect_received(struct smr_pair *pair)
{
	struct sm_ring *ring = pair->rx;
	uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);		/* (D) */
	uint32_t start = SMR_STAGING_START;
	int n = 0;

	while (pair->rx_seen != tail) {
		struct smr_segment *segment = &pair->received[n++];

		*segment = segment_of(&ring->slot[pair->rx_seen]);
		if (segment->len && segment->len <= SMR_SMALL) {
			memcpy(pair->staging + start,
			       smr_buffer(pair, segment->buf) + segment->start, segment->len);
			segment->start = start;
			start += segment->len;
		} else {
			segment->start |= pair->rx_seen << 16;
		}
		pair->rx_seen = next(ring, pair->rx_seen);
	}
	/* For poll(): what was handed out is no news. */
	ring->cur = pair->rx_seen;
	pair->found[0] = start;
	return n;
}

/* Bytes of a connection in slots that the kernel has not been shown yet. */
size_t smr_unsynced(const struct smr_pair *pair, uint32_t id)
{
	const struct sm_ring *ring = pair->tx;
	size_t bytes = 0;

	for (uint32_t i = pair->tx_synced; i != pair->tx_head; i = next(ring, i))
		if (SM_PTR_ID(ring->slot[i].ptr) == id)
			bytes += ring->slot[i].len;
	return bytes;
}

/* Ask for a report of the connection's last slot.  Returns 0 if all of them are synced. */
int smr_report(const struct smr_pair *pair, uint32_t id)
{
	const struct sm_ring *ring = pair->tx;

	for (uint32_t i = pair->tx_head; i != pair->tx_synced;) {
		i = prev(ring, i);
		if (SM_PTR_ID(ring->slot[i].ptr) == id) {
			pair->tx->slot[i].flags |= NS_REPORT;
			return 1;
		}
	}
	return 0;
}

/* Show the kernel what was written; the next sync, or poll(), sends it. */
static void submit(struct smr_pair *pair)
{
	uint32_t head = __atomic_load_n(&pair->tx_head, __ATOMIC_ACQUIRE);

	pair->tx->cur = head;
	__atomic_store_n(&pair->tx->head, head, __ATOMIC_RELEASE);		/* (A) */
}

/* Give back every received slot that was handed out. */
static void give_back(struct smr_pair *pair)
{
	pair->rx->cur = pair->rx_seen;
	__atomic_store_n(&pair->rx->head, pair->rx_seen, __ATOMIC_RELEASE);	/* (A) */
}

static int sync_rings(struct smr_pair *pair, uint32_t flags, int64_t deadline_ns)
{
	struct sm_sync req = {
		.flags = flags,
		.spin_us = flags & SM_SYNC_POLL ? pair->spin_us : 0,
		.deadline_ns = deadline_ns,
	};

	return ioctl(pair->fd, SMIOC_SYNC, &req) ? -errno : 0;
}

/* As smr_send(), for a thread that is between smr_enter() and smr_leave(). */
int smr_send_entered(struct smr_pair *pair)
{
	int err;

	if (pair->fd < 0)
		return -EBADF;	/* closed, and the memory may be gone */
	submit(pair);
	err = sync_rings(pair, SM_SYNC_TX, 0);
	return err ? err : collect_refused(pair);
}

/* Send what was written, in the middle of a batch.  Returns how many slots were refused. */
int smr_send(struct smr_pair *pair)
{
	int n;

	if (smr_enter(pair))
		return -EBUSY;
	n = smr_send_entered(pair);
	smr_leave(pair);
	return n;
}

/*
 * Send what was written, unless a thread is in the pair.  Nothing may be written meanwhile.  What is
 * refused is left to the pair's thread, which finds it with what it sends next.
 */
void smr_help_send(struct smr_pair *pair)
{
	int was = SMR_FREE;

	if (pair->tx_head == pair->tx_synced ||
	    !__atomic_compare_exchange_n(&pair->busy, &was, SMR_HELPED, 0, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED))
		return;
	smr_send_entered(pair);
	smr_leave(pair);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The deadline for smr_exchange() that is timeout seconds from now; negative: never. */
int64_t smr_deadline(double timeout)
{
	if (timeout < 0 || timeout > 1e9)
		return SMR_FOREVER;
	return timeout ? now_ns() + (int64_t)ceil(timeout * 1e9) : SMR_AT_ONCE;
}

/* Milliseconds until a deadline, for epoll_wait(). */
static int milliseconds_until(int64_t deadline)
{
	int64_t left;

	if (deadline == SMR_FOREVER || deadline == SMR_AT_ONCE)
		return deadline;
	left = deadline - now_ns();
	if (left <= 0)
		return 0;
	left = (left + 999999) / 1000000;
	return left < INT_MAX ? left : INT_MAX;
}

/* Wait for the rings and the watched files; which of those are ready goes to pair->watched. */
static int wait_ready(struct smr_pair *pair, int64_t deadline)
{
	struct epoll_event ready[SMR_WATCHED];
	int n = epoll_wait(pair->epoll, ready, SMR_WATCHED, milliseconds_until(deadline));

	if (n < 0)
		return -errno;
	pair->watch_countdown = SYNCS_PER_WATCH;
	pair->quiet = 0;
	for (int i = 0; i < n; i++) {
		if (ready[i].data.fd == pair->fd)
			pair->quiet = 1;
		else
			pair->watched[pair->found[2]++] = ready[i].data.fd;
	}
	return 0;
}

/*
 * epoll does the waiting, because watched files and other threads may end it too.
 *
 * Rings that carry little are found readable by waiting, again and again.  There the wait itself
 * is the sync, because poll() syncs: one system call instead of a sync that finds nothing, and
 * then a wait.  epoll looks at the rings for sure only if it reported them the last time.
 */
static int exchange_slots(struct smr_pair *pair, int64_t deadline)
{
	int err, n;

	if (pair->quiet && deadline && !pair->spin_us) {
		err = wait_ready(pair, deadline);
	} else {
		err = sync_rings(pair, SM_SYNC_TX | SM_SYNC_RX | SM_SYNC_POLL, 0);
		if (err)
			return err;
		n = collect_received(pair);
		if (n || !deadline) {
			if (!pair->watch_countdown--)
				err = wait_ready(pair, SMR_AT_ONCE);
			pair->quiet = 0;
			collect_refused(pair);
			return err && err != -EINTR ? err : n;
		}
		err = wait_ready(pair, deadline);
	}
	if (err && err != -EINTR)
		return err;
	collect_refused(pair);
	n = collect_received(pair);
	if (n > QUIET)
		pair->quiet = 0;
	return n ? n : err;
}

/*
 * Give back, send, receive; wait until the deadline if nothing has arrived.  Returns the number of
 * received slots; pair->found says what else there is.  -EINTR: a signal ended the wait before
 * anything arrived, and the call may be made again as it was.
 */
int smr_exchange(struct smr_pair *pair, int64_t deadline)
{
	int n;

	if (smr_enter(pair))
		return -EBUSY;
	pair->found[2] = 0;
	submit(pair);
	give_back(pair);
	n = exchange_slots(pair, deadline);
	smr_leave(pair);
	return n;
}
