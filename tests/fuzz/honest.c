// SPDX-License-Identifier: GPL-2.0
/*
 * The honest connection: an application that keeps to the interface, on a port of its own, and
 * its peer on an ordinary socket.  Both send each other bytes that follow from their position.
 * In rounds, each a connection, by turns over IPv4 and IPv6; the peer ends a round, and the port
 * answers in one of three ways.  In some rounds the port gives the socket back midway, goes on
 * without rings, and attaches it again.
 *
 * The port sleeps in poll() or in a sync without a limit: a wake-up that does not come is a stall,
 * which the conductor sees.
 */
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS		128
#define LEAD		(192 << 10)	/* the port sends at most so much more than it received */
#define ROUND_MAX	(4 << 20)

/* -- both ------------------------------------------------------------------------------------- */

struct end {
	const char *name;
	struct rng rng;
	uint32_t round;
	uint64_t send_key, receive_key;
	uint64_t sent, received;	/* in this round */
	enum counter verified;		/* what this end received and found right, of all rounds */
};

static void end_start_round(struct end *end, bool port)
{
	uint64_t key = mix64(shared->seed + 2 * ++end->round);

	end->send_key = key + port;
	end->receive_key = key + !port;
	end->sent = 0;
	end->received = 0;
}

static void end_check(struct end *end, const void *data, size_t size)
{
	uint64_t wrong = stream_check(end->receive_key, end->received, data, size);

	if (wrong != UINT64_MAX) {
		fail("round %u: wrong byte at %" PRIu64 ", received by %s", end->round, wrong,
		     end->name);
		_exit(1);
	}
	end->received += size;
	count_n(end->verified, size);
}

static void end_check_total(const struct end *end, uint64_t sent)
{
	if (end->received != sent) {
		fail("round %u: %s received %" PRIu64 " bytes of %" PRIu64, end->round, end->name,
		     end->received, sent);
		_exit(1);
	}
}

/* The honest ones must not be the first to go when memory is short, nor wait for all others. */
static void protect(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "-1000", 5) != 5)
		die("oom_score_adj");
	close(fd);
	setpriority(PRIO_PROCESS, 0, -5);
}

/* -- the port --------------------------------------------------------------------------------- */

struct sent_slot {
	uint64_t position;
	uint16_t len;
};

struct honest {
	struct end end;
	int port, sock;
	struct sm_ring *tx, *rx;
	uint32_t id;
	uint32_t done;			/* first transmit slot whose fate is not known */
	struct sent_slot slot[SLOTS];
	uint64_t next;			/* position of the next byte to put into a slot */
	uint64_t moved;			/* slots received, and slots accepted */
	bool blocked, refused, eof, closed;
};

#define EXPECT(h, condition)							\
	do {									\
		if (!(condition)) {						\
			fail("round %u, honest port: %s is not so (%s:%d, errno %d)",	\
			     (h)->end.round, #condition, __FILE__, __LINE__, errno);	\
			_exit(1);						\
		}								\
	} while (0)

static uint32_t ring_next(uint32_t i)
{
	return i + 1 == SLOTS ? 0 : i + 1;
}

static uint8_t *slot_data(struct sm_ring *ring, uint32_t i)
{
	return (uint8_t *)ring + ring->buf_ofs + (uint64_t)ring->slot[i].buf_idx * ring->nr_buf_size;
}

static void honest_open(struct honest *h)
{
	struct sm_req_register reg = { .nr_tx_slots = SLOTS, .nr_rx_slots = SLOTS };
	struct sm_req_header header = {
		.nr_version = SM_API, .nr_reqtype = SM_REQ_REGISTER, .nr_body = (uintptr_t)&reg,
	};
	struct sm_if *nif;

	snprintf(header.nr_name, sizeof(header.nr_name), "tcp:%s", NIC_NAME(0));
	h->port = open("/dev/stackmap", O_RDWR | O_CLOEXEC);
	EXPECT(h, h->port >= 0);
	EXPECT(h, !ioctl(h->port, NIOCCTRL, &header));
	EXPECT(h, reg.nr_tx_slots == SLOTS && reg.nr_rx_slots == SLOTS);
	nif = mmap(NULL, reg.nr_memsize, PROT_READ | PROT_WRITE, MAP_SHARED, h->port, 0);
	EXPECT(h, nif != MAP_FAILED);
	h->tx = (void *)((char *)nif + nif->ring_ofs[0]);
	h->rx = (void *)((char *)nif + nif->ring_ofs[2]);
}

static void honest_attach(struct honest *h)
{
	struct sm_attach request = { .fd = h->sock, .ring = SM_RING_ANY };

	EXPECT(h, !ioctl(h->port, SMIOC_ATTACH, &request));
	h->id = request.id;
	h->blocked = false;
	h->closed = false;
	h->eof = false;
}

/* Fill slots as far as may be. */
static void honest_fill(struct honest *h, uint64_t limit)
{
	uint32_t head = h->tx->head;
	uint32_t tail = __atomic_load_n(&h->tx->tail, __ATOMIC_ACQUIRE);

	while (!h->blocked && head != tail && h->next < limit) {
		struct sm_slot *slot = &h->tx->slot[head];
		uint32_t len = 1 + rng_below(&h->end.rng, h->tx->nr_buf_size);
		uint32_t offset;

		if (len > limit - h->next)
			len = limit - h->next;
		offset = rng_below(&h->end.rng, h->tx->nr_buf_size - len + 1);
		stream_fill(h->end.send_key, h->next, slot_data(h->tx, head) + offset, len);
		slot->len = len;
		slot->flags = 0;
		slot->ptr = SM_PTR(h->id, offset);
		h->slot[head] = (struct sent_slot){ h->next, len };
		h->next += len;
		head = ring_next(head);
	}
	h->tx->cur = head;
	__atomic_store_n(&h->tx->head, head, __ATOMIC_RELEASE);
}

/* Account for the slots that a sync has processed. */
static void honest_collect(struct honest *h)
{
	uint32_t end = ring_next(__atomic_load_n(&h->tx->tail, __ATOMIC_ACQUIRE));

	for (; h->done != end && h->done != h->tx->head; h->done = ring_next(h->done)) {
		struct sm_slot *slot = &h->tx->slot[h->done];
		struct sent_slot *sent = &h->slot[h->done];

		if (SM_PTR_FLAGS(slot->ptr) & SM_SLOT_REFUSED) {
			EXPECT(h, SM_PTR_ERRNO(slot->ptr) == EAGAIN);
			if (!h->refused)
				h->next = sent->position;
			h->refused = true;
			h->blocked = true;
			continue;
		}
		EXPECT(h, !h->refused);		/* none after a refused one */
		EXPECT(h, slot->flags & NS_BUF_CHANGED);
		EXPECT(h, sent->position == h->end.sent);
		h->end.sent += sent->len;
		h->moved++;
	}
	if (h->done == h->tx->head)
		h->refused = false;
}

static void honest_receive(struct honest *h)
{
	uint32_t tail = __atomic_load_n(&h->rx->tail, __ATOMIC_ACQUIRE);
	uint32_t i;

	for (i = h->rx->head; i != tail; i = ring_next(i)) {
		struct sm_slot *slot = &h->rx->slot[i];
		uint8_t event = SM_PTR_FLAGS(slot->ptr);

		if (SM_PTR_ID(slot->ptr) != h->id || h->closed) {
			fail("round %u, honest port: got a slot of connection %u: event %#x, errno "
			     "%u, %u bytes, while %u is %s", h->end.round, SM_PTR_ID(slot->ptr),
			     event, SM_PTR_ERRNO(slot->ptr), slot->len, h->id,
			     h->closed ? "closed" : "attached");
			_exit(1);
		}
		h->moved++;
		if (event)
			EXPECT(h, !slot->len);
		else
			EXPECT(h, slot->len);
		EXPECT(h, !(event & SM_SLOT_ERROR));
		if (event & SM_SLOT_WRITABLE)
			h->blocked = false;
		if (event & SM_SLOT_EOF)
			h->eof = true;
		if (event & SM_SLOT_CLOSED)
			h->closed = true;
		if (slot->len) {
			EXPECT(h, !h->eof);
			end_check(&h->end, slot_data(h->rx, i) + SM_PTR_OFFSET(slot->ptr),
				  slot->len);
		}
	}
	h->rx->cur = i;
	__atomic_store_n(&h->rx->head, i, __ATOMIC_RELEASE);
}

static void honest_sync(struct honest *h)
{
	struct sm_sync sync = { .flags = SM_SYNC_TX | SM_SYNC_RX };

	if (rng_one_in(&h->end.rng, 2)) {
		sync.flags |= SM_SYNC_POLL;
		sync.spin_us = rng_below(&h->end.rng, 50);
	}
	EXPECT(h, !ioctl(h->port, SMIOC_SYNC, &sync));
}

/* One exchange: send up to @limit and receive; wait if nothing moved. */
static void honest_exchange(struct honest *h, uint64_t limit)
{
	struct pollfd pfd = { .fd = h->port, .events = POLLIN };
	uint64_t before = h->moved;

	honest_fill(h, limit);
	honest_sync(h);
	honest_collect(h);
	honest_receive(h);
	if (h->moved != before)
		return;
	if (h->done != h->tx->head)
		pfd.events |= POLLOUT;		/* the ring stands still for lack of buffers */
	if (rng_one_in(&h->end.rng, 2)) {
		struct sm_sync sync = { SM_SYNC_TX | SM_SYNC_RX | SM_SYNC_WAIT, 0, -1 };

		EXPECT(h, !ioctl(h->port, SMIOC_SYNC, &sync));
	} else {
		EXPECT(h, poll(&pfd, 1, -1) == 1);
		EXPECT(h, !(pfd.revents & POLLERR));
	}
	honest_collect(h);
	honest_receive(h);
}

/* Send up to @limit, receiving meanwhile. */
static void honest_send_all(struct honest *h, uint64_t limit)
{
	while (h->end.sent < limit || h->done != h->tx->head)
		honest_exchange(h, limit);
}

static void honest_until_closed(struct honest *h)
{
	while (!h->closed)
		honest_exchange(h, h->next);
}

/* Blocking, without rings: send up to @limit, receive at least @want unless the peer is done. */
static void honest_without_rings(struct honest *h, uint64_t limit, uint64_t want)
{
	static uint8_t data[16384];
	uint64_t goal = h->end.received + want;

	h->eof = false;
	while (h->end.sent < limit || (h->end.received < goal && !h->eof)) {
		struct pollfd pfd = { .fd = h->sock };
		ssize_t n;

		if (h->end.sent < limit)
			pfd.events |= POLLOUT;
		if (!h->eof)
			pfd.events |= POLLIN;
		EXPECT(h, poll(&pfd, 1, -1) == 1);
		n = recv(h->sock, data, 1 + rng_below(&h->end.rng, sizeof(data)), MSG_DONTWAIT);
		EXPECT(h, n >= 0 || errno == EAGAIN);
		if (n > 0)
			end_check(&h->end, data, n);
		h->eof |= !n;
		if (h->end.sent < limit) {
			uint64_t left = limit - h->end.sent;

			n = left < sizeof(data) ? left : sizeof(data);
			stream_fill(h->end.send_key, h->end.sent, data, n);
			n = send(h->sock, data, n, MSG_DONTWAIT);
			EXPECT(h, n >= 0 || errno == EAGAIN);
			h->end.sent += n > 0 ? n : 0;
		}
	}
	h->next = h->end.sent;
}

/* Everything accepted is sent, and everything received comes first: then the socket is ours. */
static void honest_detach(struct honest *h)
{
	struct sm_conn_ctl request = { .id = h->id };

	honest_send_all(h, h->next);
	EXPECT(h, !ioctl(h->port, SMIOC_DETACH, &request));
	honest_until_closed(h);
	count(C_honest_detaches);
}

static void honest_end_round(struct honest *h)
{
	uint64_t rest = h->end.sent + rng_below(&h->end.rng, 128 << 10);

	switch (rng_below(&h->end.rng, 3)) {
	case 0:					/* FIN, and let the port say when it is over */
		honest_send_all(h, rest);
		atomic_store(&shared->honest_port_total, h->end.sent);
		EXPECT(h, !shutdown(h->sock, SHUT_WR));
		honest_until_closed(h);
		break;
	case 1:					/* close the descriptor under the port */
		honest_send_all(h, rest);
		atomic_store(&shared->honest_port_total, h->end.sent);
		close(h->sock);
		h->sock = -1;
		honest_until_closed(h);
		break;
	default:				/* finish without rings */
		honest_detach(h);
		honest_without_rings(h, rest, 0);
		atomic_store(&shared->honest_port_total, h->end.sent);
	}
	if (h->sock >= 0)
		close(h->sock);
}

static void honest_check_stats(struct honest *h)
{
	struct sm_stats stats;

	EXPECT(h, !ioctl(h->port, SMIOC_STATS, &stats));
	EXPECT(h, !stats.bad_slots && !stats.bad_rings && !stats.unknown_conn && !stats.dead_conn);
	EXPECT(h, stats.connections == 0);
}

static void honest_round(struct honest *h)
{
	uint64_t detach_at = UINT64_MAX;

	end_start_round(&h->end, true);
	h->next = 0;
	if (rng_one_in(&h->end.rng, 2))
		detach_at = rng_below(&h->end.rng, ROUND_MAX / 4);
	honest_attach(h);
	while (!h->eof) {
		EXPECT(h, !h->closed);
		honest_exchange(h, h->end.received + LEAD);
		if (h->end.received < detach_at || h->eof)
			continue;
		detach_at = UINT64_MAX;
		honest_detach(h);
		honest_without_rings(h, h->end.sent + rng_below(&h->end.rng, LEAD),
				     rng_below(&h->end.rng, 8192));
		honest_attach(h);
	}
	/* Before it sent FIN, the peer said how many bytes there were. */
	end_check_total(&h->end, atomic_load(&shared->honest_peer_total));
	honest_end_round(h);
	honest_check_stats(h);
	count(C_honest_rounds);
}

static int honest_listen(bool v6)
{
	struct sockaddr_storage address;
	socklen_t size = network_address(&address, 0, false, v6, HONEST_PORT);
	int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) ||
	    bind(fd, (void *)&address, size) || listen(fd, 16))
		die("honest port: listen");
	return fd;
}

void honest_port_run(void)
{
	static struct honest h = { .end.name = "the port", .end.verified = C_honest_received };
	struct pollfd listener[2] = {
		{ .fd = honest_listen(false), .events = POLLIN },
		{ .fd = honest_listen(true), .events = POLLIN },
	};

	protect();
	h.end.rng = rng_make(shared->seed, 1, 0, 0xfffe);
	honest_open(&h);
	for (;;) {
		if (poll(listener, 2, 200) > 0) {
			bool v6 = listener[1].revents;

			h.sock = accept4(listener[v6].fd, NULL, NULL, SOCK_CLOEXEC);
			EXPECT(&h, h.sock >= 0);
			honest_round(&h);
			if (v6)
				count(C_honest_rounds_ipv6);
		} else if (stopping()) {
			_exit(0);
		}
	}
}

/* -- its peer --------------------------------------------------------------------------------- */

static void peer_round(struct end *peer, int sock)
{
	static uint8_t data[65536];
	uint64_t goal = rng_next(&peer->rng) % (1ULL << (4 + rng_below(&peer->rng, 19)));
	bool finished = false;

	end_start_round(peer, false);
	for (;;) {
		struct pollfd pfd = { .fd = sock, .events = POLLIN };
		ssize_t n;

		if (peer->sent < goal && stopping())
			goal = peer->sent;
		if (peer->sent < goal) {
			uint64_t left = goal - peer->sent;

			n = 1 + rng_below(&peer->rng, sizeof(data));
			n = left < (uint64_t)n ? left : (uint64_t)n;
			stream_fill(peer->send_key, peer->sent, data, n);
			n = send(sock, data, n, MSG_DONTWAIT);
			if (n < 0 && errno != EAGAIN)
				die("honest peer: send");
			peer->sent += n > 0 ? n : 0;
		} else if (!finished) {
			finished = true;
			atomic_store(&shared->honest_peer_total, peer->sent);
			if (shutdown(sock, SHUT_WR))
				die("honest peer: shutdown");
		}
		n = recv(sock, data, 1 + rng_below(&peer->rng, sizeof(data)), MSG_DONTWAIT);
		if (n > 0) {
			end_check(peer, data, n);
		} else if (!n) {
			break;
		} else if (errno != EAGAIN) {
			die("honest peer: recv");
		}
		if (n < 0 || rng_one_in(&peer->rng, 4)) {
			/* Sometimes in a hurry, sometimes not. */
			if (peer->sent < goal && rng_one_in(&peer->rng, 2))
				pfd.events |= POLLOUT;
			poll(&pfd, 1, finished ? -1 : (int)rng_below(&peer->rng, 10));
		}
	}
	if (!finished) {
		fail("round %u: the honest peer got EOF before it had sent all", peer->round);
		_exit(1);
	}
	end_check_total(peer, atomic_load(&shared->honest_port_total));
}

void honest_peer_run(void)
{
	static struct end peer = { .name = "the peer", .verified = C_honest_sent };
	protect();
	network_enter_peer();
	peer.rng = rng_make(shared->seed, 2, 0, 0xfffe);
	while (!stopping()) {
		struct sockaddr_storage address;
		socklen_t size = network_address(&address, 0, false, peer.round % 2, HONEST_PORT);
		int sock = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (sock < 0)
			die("honest peer: socket");
		if (!connect(sock, (void *)&address, size))
			peer_round(&peer, sock);
		else if (errno != ECONNREFUSED || peer.round)
			die("honest peer: connect");
		else
			sleep_ms(50);	/* the port has only just started */
		close(sock);
	}
	_exit(0);
}
