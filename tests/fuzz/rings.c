// SPDX-License-Identifier: GPL-2.0
/* Operations of a hostile thread on rings, slots and buffers. */
#include "hostile.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BATCH	256

static uint32_t random_buffer(struct rng *rng, const struct port *port)
{
	return rng_one_in(rng, 8) ? rng_odd(rng) : rng_below(rng, port->nbufs + 1);
}

static void good_slot(struct rng *rng, struct port *port, struct sm_slot *slot)
{
	uint32_t len = 1 + rng_below(rng, rng_one_in(rng, 4) ? 4096 : 100);

	slot->len = len;
	slot->flags = rng_one_in(rng, 4) ? NS_REPORT : 0;
	slot->ptr = SM_PTR(pick_live_id(rng, port), rng_below(rng, 4096 - len + 1));
}

/* Alter a slot; true if it is another one now. */
static bool mutate_slot(struct rng *rng, struct port *port, struct sm_slot *slot)
{
	const struct sm_slot before = *slot;

	switch (rng_below(rng, 8)) {
	case 0:
		slot->buf_idx = random_buffer(rng, port);
		break;
	case 1:
		slot->len = rng_odd(rng);
		break;
	case 2:
		slot->flags = rng_odd(rng);
		break;
	case 3:
		slot->ptr = (slot->ptr & ~0xffffffffULL) | rng_odd(rng);
		break;
	case 4:
		slot->ptr = (slot->ptr & ~(0xffffULL << 32)) | (uint64_t)(uint16_t)rng_odd(rng) << 32;
		break;
	case 5:
		slot->ptr |= 1ULL << (48 + rng_below(rng, 16));
		break;
	case 6:
		slot->ptr = rng_next(rng);
		break;
	default:
		rng_mutate(rng, slot, sizeof(*slot));
	}
	return memcmp(&before, slot, sizeof(before));
}

/* Hardly ever fill a slot of a connection that the kernel reported as unknown. */
static void learn(struct rng *rng, struct port *port, uint64_t ptr)
{
	if (SM_PTR_FLAGS(ptr) & SM_SLOT_REFUSED && SM_PTR_ERRNO(ptr) == ENOENT && rng_below(rng, 64))
		forget_id(port, SM_PTR_ID(ptr));
}

/*
 * Fill slots from head on, @mutated of 16 of them mutated, and sync.  Indices that were written
 * over are written back after a refusal, mostly: a ring of nothing but bad indices sends nothing.
 */
static void submit(struct rng *rng, struct port *port, uint32_t mutated)
{
	struct pair *pair = pick_pair(rng, port);
	struct sm_ring *ring = pair->tx;
	uint32_t n = port->ntx, head, room, batch;
	uint32_t before[BATCH], wrote[BATCH], altered = 0;

	if (!n)
		return;
	if (!pick_live_id(rng, port) && rng_one_in(rng, 4))
		connect_port(rng, port);	/* or TCP would see hardly any slot */
	head = ring->head % n;
	room = (ring->tail - head + n) % n;
	batch = 1 + rng_below(rng, rng_one_in(rng, 2) ? 8 : BATCH);
	if (batch > room && rng_below(rng, 64))
		batch = room;
	for (uint32_t k = 0; k < batch; k++) {
		struct sm_slot *slot = &ring->slot[(head + k) % n];
		struct sm_slot new = *slot;

		before[k] = new.buf_idx;
		good_slot(rng, port, &new);
		if (rng_below(rng, 16) < mutated)
			altered += mutate_slot(rng, port, &new);
		wrote[k] = new.buf_idx;
		*slot = new;
	}
	ring->cur = (head + batch) % n;
	__atomic_store_n(&ring->head, (head + batch) % n, __ATOMIC_RELEASE);
	/* Beyond the tail, the ring is refused, not its slots. */
	if (port_sync(rng, port, pair) & SM_SYNC_TX && batch <= room)
		count_n(C_slots_mutated, altered);
	if (rng_one_in(rng, 16))
		return;
	for (uint32_t k = 0; k < batch; k++) {
		struct sm_slot *slot = &ring->slot[(head + k) % n];

		learn(rng, port, slot->ptr);
		if (slot->buf_idx == wrote[k])
			slot->buf_idx = before[k];
	}
}

static void submit_good(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);

	if (port)
		submit(rng, port, 0);
}

static void submit_some_bad(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);

	if (port)
		submit(rng, port, 4);
}

static void submit_bad(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);

	if (port)
		submit(rng, port, 16);
}

/* Ring after ring of mutated slots: most are refused, which takes little. */
static void storm(struct rng *rng)
{
	for (uint32_t k = 1 + rng_below(rng, 100); k && !stopping(); k--)
		submit_bad(rng);
}

/* Give receive slots back: as they are, with other indices, or with those of transmit slots. */
static void give_back(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	uint32_t n, tail, bad, altered = 0;
	struct sm_ring *ring;
	struct pair *pair;

	if (!port || !port->nrx)
		return;
	pair = pick_pair(rng, port);
	ring = pair->rx;
	n = port->nrx;
	port_sync(rng, port, pair);
	tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) % n;
	bad = rng_below(rng, 3) ? 0 : 1 + rng_below(rng, 8);
	for (uint32_t i = ring->head % n; i != tail; i = (i + 1) % n) {
		if (rng_one_in(rng, 64)) {
			tail = i;
			break;
		}
		if (bad && rng_one_in(rng, bad)) {
			uint32_t index = random_buffer(rng, port);

			altered += index != ring->slot[i].buf_idx;
			ring->slot[i].buf_idx = index;
		}
	}
	ring->cur = tail;
	__atomic_store_n(&ring->head, tail, __ATOMIC_RELEASE);
	if (port_sync(rng, port, pair) & SM_SYNC_RX)
		count_n(C_slots_mutated, altered);
}

/* Swap buffers between received slots and free transmit slots: a proxy without copies. */
static void forward(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	uint32_t r, t, batch = 1 + rng_below(rng, 16);
	struct sm_ring *rx, *tx;
	struct pair *from, *to;

	if (!port || !port->nrx || !port->ntx)
		return;
	from = pick_pair(rng, port);
	to = pick_pair(rng, port);
	rx = from->rx;
	tx = to->tx;
	r = rx->head % port->nrx;
	t = tx->head % port->ntx;
	while (batch-- && r != rx->tail % port->nrx && t != tx->tail % port->ntx) {
		struct sm_slot *received = &rx->slot[r], *slot = &tx->slot[t];
		uint32_t spare = slot->buf_idx;

		slot->buf_idx = received->buf_idx;
		slot->len = received->len;
		slot->flags = NS_BUF_CHANGED;
		slot->ptr = SM_PTR(pick_id(rng, port), SM_PTR_OFFSET(received->ptr));
		if (rng_below(rng, 8))
			received->buf_idx = spare;
		r = (r + 1) % port->nrx;
		t = (t + 1) % port->ntx;
	}
	rx->cur = r;
	rx->head = r;
	tx->cur = t;
	__atomic_store_n(&tx->head, t, __ATOMIC_RELEASE);
	port_sync(rng, port, from);
	port_sync(rng, port, to);
}

/* Overwrite any slots, also those of the kernel. */
static void scribble_slots(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct sm_ring *ring;
	struct pair *pair;
	uint32_t n;

	if (!port)
		return;
	pair = pick_pair(rng, port);
	ring = rng_below(rng, 3) ? pair->tx : pair->rx;
	n = ring == pair->tx ? port->ntx : port->nrx;
	for (uint32_t k = 1 + rng_below(rng, 16); k; k--)
		mutate_slot(rng, port, &ring->slot[rng_below(rng, n)]);
	count(C_scribbles);
}

/* Write over what the kernel tells the application: none of it may be believed. */
static void scribble_header(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct pair *pair;

	if (!port)
		return;
	pair = pick_pair(rng, port);
	if (rng_one_in(rng, 4))
		rng_mutate(rng, port->arena, sizeof(struct sm_if));
	else
		rng_mutate(rng, rng_one_in(rng, 2) ? pair->tx : pair->rx, sizeof(struct sm_ring));
	count(C_scribbles);
}

static void scribble_positions(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct sm_ring *ring;
	struct pair *pair;

	if (!port)
		return;
	pair = pick_pair(rng, port);
	ring = rng_one_in(rng, 2) ? pair->tx : pair->rx;
	if (rng_below(rng, 3))
		ring->head = rng_odd(rng);
	if (rng_below(rng, 3))
		ring->cur = rng_odd(rng);
	if (rng_one_in(rng, 3))
		ring->tail = rng_odd(rng);
	port_sync(rng, port, pair);
	count(C_scribbles);
}

/* Write into pages, free, pinned or foreign. */
static void scribble_buffers(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);

	if (!port)
		return;
	for (uint32_t k = 1 + rng_below(rng, 16); k; k--) {
		size_t at = rng_next(rng) % port->size;
		size_t n = rng_below(rng, 5000);

		if (n > port->size - at)
			n = port->size - at;
		/* Not the rings, or hardly anything else would happen any more. */
		if (at >= port->size - (size_t)port->nbufs * 4096)
			memset(port->arena + at, rng_next(rng), n);
	}
	count(C_scribbles);
}

/* Rewrite slots and positions for a while, whatever the other threads submit meanwhile. */
static void race(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct sm_slot kept, *slot;
	struct sm_ring *ring;

	if (!port || !port->ntx)
		return;
	ring = pick_pair(rng, port)->tx;
	slot = &ring->slot[(ring->head + rng_below(rng, 32)) % port->ntx];
	kept = *slot;
	for (uint32_t k = rng_below(rng, 20000); k; k--) {
		switch (k % 4) {
		case 0:
			slot->len ^= 0x1f00;
			break;
		case 1:
			slot->buf_idx ^= 1 + k % 7;
			break;
		case 2:
			slot->ptr ^= 1ULL << (k % 64);
			break;
		default:
			slot = &ring->slot[(slot - ring->slot + 1) % port->ntx];
		}
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
	}
	*slot = kept;
	count(C_scribbles);
}

const struct action ring_actions[] = {
	{ "submit_good", 6, submit_good },
	{ "submit_some_bad", 4, submit_some_bad },
	{ "submit_bad", 6, submit_bad },
	{ "storm", 4, storm },
	{ "give_back", 6, give_back },
	{ "forward", 2, forward },
	{ "scribble_slots", 2, scribble_slots },
	{ "scribble_header", 1, scribble_header },
	{ "scribble_positions", 1, scribble_positions },
	{ "scribble_buffers", 1, scribble_buffers },
	{ "race", 1, race },
};
const size_t ring_action_count = ARRAY_SIZE(ring_actions);
