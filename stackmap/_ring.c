/*
 * The hot loops of RingPort.
 *
 * Ring positions follow netmap: [head, tail) is ours.  Everything the kernel must see is stored
 * before head is released, everything it shows is read after tail was acquired:
 *
 *	application				kernel
 *	write slots, payload
 *	store-release head	(A) --------->	load-acquire head
 *						read slots; write slots, buffers
 *	load-acquire tail	<---------- (B)	store-release tail
 *	read slots, payload
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stackmap.h"

#include "_ring.h"

/* Watched files are looked at without waiting now and then, also while the rings are busy. */
#define SYNCS_PER_WATCH 16
/* Slots per exchange up to which a port counts as quiet. */
#define QUIET 3

_Static_assert(sizeof(struct smr_stats) == sizeof(struct sm_stats), "smr_stats mirrors sm_stats");

static uint32_t next(const struct sm_ring *ring, uint32_t i)
{
	return i + 1 == ring->num_slots ? 0 : i + 1;
}

static uint32_t prev(const struct sm_ring *ring, uint32_t i)
{
	return i ? i - 1 : ring->num_slots - 1;
}

int smr_open(struct smr_port *port, const char *device, const char *name, uint32_t tx_slots,
	     uint32_t rx_slots)
{
	struct sm_req_register body = { .nr_tx_slots = tx_slots, .nr_rx_slots = rx_slots };
	struct sm_req_header header = {
		.nr_version = SM_API,
		.nr_reqtype = SM_REQ_REGISTER,
		.nr_body = (uintptr_t)&body,
	};
	const struct sm_if *nifp;
	int err;

	if (snprintf(header.nr_name, sizeof(header.nr_name), "tcp:%s", name) >=
	    (int)sizeof(header.nr_name))
		return -ENAMETOOLONG;
	port->fd = open(device, O_RDWR | O_CLOEXEC);
	if (port->fd < 0)
		return -errno;
	if (ioctl(port->fd, NIOCCTRL, &header))
		goto err;
	port->size = body.nr_memsize;
	port->mem = mmap(NULL, port->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 port->fd, 0);
	if (port->mem == MAP_FAILED) {
		port->mem = NULL;
		goto err;
	}
	nifp = (const struct sm_if *)(port->mem + body.nr_offset);
	port->tx = (struct sm_ring *)((char *)nifp + nifp->ring_ofs[0]);
	port->rx = (struct sm_ring *)((char *)nifp + nifp->ring_ofs[2]);
	return 0;
err:
	err = -errno;
	smr_close(port);
	return err;
}

void smr_close(struct smr_port *port)
{
	if (port->mem)
		munmap(port->mem, port->size);
	port->mem = NULL;
	if (port->fd >= 0)
		close(port->fd);
	port->fd = -1;
}

int smr_attach(struct smr_port *port, int fd, uint32_t *id)
{
	struct sm_attach req = { .fd = fd };

	if (ioctl(port->fd, SMIOC_ATTACH, &req))
		return -errno;
	*id = req.id;
	return 0;
}

int smr_detach(struct smr_port *port, uint32_t id)
{
	struct sm_conn_ctl req = { .id = id };

	return ioctl(port->fd, SMIOC_DETACH, &req) ? -errno : 0;
}

int smr_pause(struct smr_port *port, uint32_t id, int paused)
{
	struct sm_conn_ctl req = { .id = id, .flags = paused ? SM_RX_PAUSE : 0 };

	return ioctl(port->fd, SMIOC_RXCTL, &req) ? -errno : 0;
}

int smr_stats(struct smr_port *port, struct smr_stats *stats)
{
	return ioctl(port->fd, SMIOC_STATS, stats) ? -errno : 0;
}

char *smr_buffer(struct smr_port *port, uint32_t buf)
{
	return (char *)port->rx + port->rx->buf_ofs + (size_t)buf * port->rx->nr_buf_size;
}

/*
 * Copy data into transmit slots of a connection.  Returns the bytes taken: fewer than len when
 * the ring is full.  Small writes to the same connection share the last slot.
 */
size_t smr_write(struct smr_port *port, uint32_t id, const char *data, size_t len)
{
	struct sm_ring *ring = port->tx;
	uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);	/* (B) */
	uint32_t size = ring->nr_buf_size;
	size_t left = len, n;

	if (left && port->tx_head != port->tx_synced) {
		struct sm_slot *slot = &ring->slot[prev(ring, port->tx_head)];

		if (slot->ptr == SM_PTR(id, 0) && slot->len < size) {
			n = left < size - slot->len ? left : size - slot->len;
			memcpy(smr_buffer(port, slot->buf_idx) + slot->len, data, n);
			slot->len += n;
			data += n;
			left -= n;
		}
	}
	while (left && port->tx_head != tail) {
		struct sm_slot *slot = &ring->slot[port->tx_head];

		n = left < size ? left : size;
		memcpy(smr_buffer(port, slot->buf_idx), data, n);
		slot->len = n;
		slot->flags = 0;
		slot->ptr = SM_PTR(id, 0);
		port->tx_head = next(ring, port->tx_head);
		data += n;
		left -= n;
	}
	return len - left;
}

/* Collect the slots processed since the last time that the kernel refused. */
static int collect_refused(struct smr_port *port)
{
	const struct sm_ring *ring = port->tx;
	/* tail is one before the first slot that was not processed */
	uint32_t done = next(ring, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE));	/* (B) */
	int n = 0;

	while (port->tx_synced != done && port->tx_synced != port->tx_head) {
		const struct sm_slot *slot = &ring->slot[port->tx_synced];

		if (SM_PTR_FLAGS(slot->ptr) & SM_SLOT_REFUSED)
			port->refused[n++] = (struct smr_segment){
				.id = SM_PTR_ID(slot->ptr),
				.start = SM_PTR_OFFSET(slot->ptr),
				.buf = slot->buf_idx,
				.len = slot->len,
				.flags = SM_PTR_FLAGS(slot->ptr),
				.err = SM_PTR_ERRNO(slot->ptr),
			};
		port->tx_synced = next(ring, port->tx_synced);
	}
	port->found[1] = n;
	return n;
}

/* Collect what the kernel has shown: received slots, and their small payloads in staging. */
static int collect_received(struct smr_port *port)
{
	struct sm_ring *ring = port->rx;
	uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);		/* (B) */
	uint32_t start = SMR_STAGING_START;
	int n = 0;

	while (port->rx_seen != tail) {
		const struct sm_slot *slot = &ring->slot[port->rx_seen];
		struct smr_segment *segment = &port->received[n++];

		*segment = (struct smr_segment){
			.id = SM_PTR_ID(slot->ptr),
			.start = SM_PTR_OFFSET(slot->ptr),
			.buf = slot->buf_idx,
			.len = slot->len,
			.flags = SM_PTR_FLAGS(slot->ptr),
			.err = SM_PTR_ERRNO(slot->ptr),
		};
		if (segment->len && segment->len <= SMR_SMALL) {
			memcpy(port->staging + start,
			       smr_buffer(port, segment->buf) + segment->start, segment->len);
			segment->start = start;
			start += segment->len;
		}
		port->rx_seen = next(ring, port->rx_seen);
	}
	/* For poll(): what was handed out is no news. */
	ring->cur = port->rx_seen;
	port->found[0] = start;
	return n;
}

/* Show the kernel what was written; the next sync, or poll(), sends it. */
static void submit(struct smr_port *port)
{
	port->tx->cur = port->tx_head;
	__atomic_store_n(&port->tx->head, port->tx_head, __ATOMIC_RELEASE);	/* (A) */
}

/* Give back every received slot that was handed out. */
static void give_back(struct smr_port *port)
{
	port->rx->cur = port->rx_seen;
	__atomic_store_n(&port->rx->head, port->rx_seen, __ATOMIC_RELEASE);	/* (A) */
}

static int sync_rings(struct smr_port *port, uint32_t flags, uint32_t spin_us)
{
	struct sm_sync req = { .flags = flags, .spin_us = spin_us };

	return ioctl(port->fd, SMIOC_SYNC, &req) ? -errno : 0;
}

/* Send what was written, in the middle of a batch.  Returns how many slots were refused. */
int smr_send(struct smr_port *port)
{
	int err;

	submit(port);
	err = sync_rings(port, SM_SYNC_TX, 0);
	return err ? err : collect_refused(port);
}

/* Wait for the port and the watched files; which of those are ready goes to port->watched. */
static int wait_ready(struct smr_port *port, int timeout_ms)
{
	struct epoll_event ready[SMR_WATCHED];
	int n = epoll_wait(port->epoll, ready, SMR_WATCHED, timeout_ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	port->watch_countdown = SYNCS_PER_WATCH;
	port->quiet = 0;
	for (int i = 0; i < n; i++) {
		if (ready[i].data.fd == port->fd)
			port->quiet = 1;
		else
			port->watched[port->found[2]++] = ready[i].data.fd;
	}
	return 0;
}

/*
 * Give back, send, receive; wait up to timeout_ms (negative: for ever) if nothing has arrived.
 * Returns the number of received slots; port->found says what else there is.
 *
 * A port that carries little is found readable by waiting, again and again.  There the wait
 * itself is the sync, because poll() syncs: one system call instead of a sync that finds nothing,
 * and then a wait.  epoll looks at the port for sure only if it reported it the last time.
 */
int smr_exchange(struct smr_port *port, int timeout_ms)
{
	int err, n;

	port->found[2] = 0;
	submit(port);
	give_back(port);
	if (port->quiet && timeout_ms) {
		err = wait_ready(port, timeout_ms);
	} else {
		err = sync_rings(port, SM_SYNC_TX | SM_SYNC_RX | SM_SYNC_POLL, port->spin_us);
		if (err)
			return err;
		n = collect_received(port);
		if (n || !timeout_ms) {
			if (!port->watch_countdown--)
				err = wait_ready(port, 0);
			port->quiet = 0;
			collect_refused(port);
			return err ? err : n;
		}
		err = wait_ready(port, timeout_ms);
	}
	if (err)
		return err;
	collect_refused(port);
	n = collect_received(port);
	if (n > QUIET)
		port->quiet = 0;
	return n;
}
