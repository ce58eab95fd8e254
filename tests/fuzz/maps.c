// SPDX-License-Identifier: GPL-2.0
/* Operations of a hostile thread on mappings, and on processes that share them. */
#include "hostile.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char *place_in(struct rng *rng, struct port *port)
{
	return port->arena + rng_below(rng, ARENA_SIZE / 4096) * 4096UL;
}

/* Anywhere in the arena, any part of the port, any protection. */
static void map_any(struct rng *rng)
{
	static const int kinds[] = { MAP_SHARED, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_PRIVATE };
	struct port *port = pick_port(rng);
	size_t size = (1 + rng_below(rng, 64)) * 4096UL;
	off_t offset = (rng_one_in(rng, 8) ? rng_next(rng) : rng_below(rng, 4096)) * 4096UL;
	int flags = kinds[rng_below(rng, ARRAY_SIZE(kinds))] | MAP_FIXED;
	char *at = place_in(rng, port);

	if (at + size > port->arena + ARENA_SIZE)
		return;
	if (rng_one_in(rng, 8))
		flags |= MAP_POPULATE;
	if (rng_one_in(rng, 16))
		flags |= MAP_LOCKED;
	count(C_mmaps);
	if (mmap(at, size, rng_below(rng, 8), flags, atomic_load(&port->fd), offset) ==
	    MAP_FAILED) {
		count(C_mmaps_refused);
		return;
	}
	/* Touch it; what may not be touched faults. */
	memset(at + rng_below(rng, size), rng_next(rng), 1);
}

/* The records of TCP's state: to be read only, whatever is tried. */
static void map_state(struct rng *rng)
{
	struct port *port = pick_port(rng);
	char *at = port->arena + ARENA_SIZE - 64 * 4096UL;
	size_t size = (1 + rng_below(rng, rng_one_in(rng, 4) ? 64 : 4)) * 4096UL;
	off_t offset = SM_STATE_OFFSET + rng_below(rng, 4) * 4096UL * rng_below(rng, 4);
	int protection = rng_one_in(rng, 4) ? PROT_READ | PROT_WRITE : PROT_READ;

	count(C_mmaps);
	if (mmap(at, size, protection, MAP_SHARED | MAP_FIXED, atomic_load(&port->fd), offset) ==
	    MAP_FAILED) {
		count(C_mmaps_refused);
		return;
	}
	if (rng_one_in(rng, 4))
		mprotect(at, size, PROT_READ | PROT_WRITE);
	at += rng_below(rng, size);
	if (rng_one_in(rng, 2))
		memset(at, rng_next(rng), 1);		/* faults */
	else if (*(volatile char *)at)
		count(C_scribbles);
}

/* The whole port a second time, elsewhere: two addresses for each page. */
static void map_twice(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	char *at;

	if (!port || port->size > ARENA_SIZE / 4)
		return;
	at = port->arena + ARENA_SIZE / 2;
	count(C_mmaps);
	if (mmap(at, port->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 atomic_load(&port->fd), 0) == MAP_FAILED)
		count(C_mmaps_refused);
	else
		memcpy(at + rng_below(rng, port->size - 64), port->arena, 64);
}

/* Take part of a mapping away; its addresses stay reserved. */
static void unmap_part(struct rng *rng)
{
	struct port *port = pick_port(rng);
	size_t size = (1 + rng_below(rng, 16)) * 4096UL;
	char *at = rng_one_in(rng, 2) ? place_in(rng, port) :
		   port->arena + rng_below(rng, port->size / 4096 + 1) * 4096UL;

	if (at + size > port->arena + ARENA_SIZE)
		return;
	mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	count(C_munmaps);
}

static void move(struct rng *rng)
{
	struct port *port = pick_port(rng);
	size_t from = (1 + rng_below(rng, 16)) * 4096UL, to = (1 + rng_below(rng, 16)) * 4096UL;
	char *at = rng_one_in(rng, 2) ? place_in(rng, port) : port->arena;
	char *there = place_in(rng, port);

	if (at + from > port->arena + ARENA_SIZE || there + to > port->arena + ARENA_SIZE)
		return;
	mremap(at, from, to, MREMAP_MAYMOVE | MREMAP_FIXED, there);
	/* The mapping that was moved left a hole: reserve it again. */
	mmap(at, from, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	count(C_munmaps);
}

static void advise(struct rng *rng)
{
	static const int advice[] = {
		MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_DODUMP, MADV_FREE,
		MADV_HUGEPAGE, MADV_MERGEABLE, MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT,
		MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_WIPEONFORK,
	};
	struct port *port = pick_port(rng);
	char *at = port->arena + rng_below(rng, port->size / 4096 + 1) * 4096UL;

	madvise(at, (1 + rng_below(rng, 32)) * 4096UL, advice[rng_below(rng, ARRAY_SIZE(advice))]);
	count(C_mmaps);
}

static void protect(struct rng *rng)
{
	struct port *port = pick_port(rng);
	char *at = port->arena + rng_below(rng, port->size / 4096 + 1) * 4096UL;
	size_t size = (1 + rng_below(rng, 32)) * 4096UL;

	mprotect(at, size, rng_below(rng, 8));
	if (rng_one_in(rng, 2))
		mlock(at, size);
	else
		munlock(at, size);
	if (rng_below(rng, 4))
		mprotect(at, size, PROT_READ | PROT_WRITE);
	count(C_mmaps);
}

/* The pages as another system call's memory: pinned by others, read and written by others. */
static void lend(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct iovec iov;
	int pipes[2];

	if (!port)
		return;
	iov.iov_base = port->arena + rng_next(rng) % port->size;
	iov.iov_len = rng_below(rng, 20000);
	switch (rng_below(rng, 3)) {
	case 0:
		if (pipe2(pipes, O_NONBLOCK | O_CLOEXEC))
			return;
		vmsplice(pipes[1], &iov, 1, SPLICE_F_NONBLOCK | SPLICE_F_GIFT);
		splice(pipes[0], NULL, pick_fd(rng), NULL, 20000, SPLICE_F_NONBLOCK);
		keep_fd(rng, pipes[0]);
		close(pipes[1]);
		break;
	case 1:
		send(pick_fd(rng), iov.iov_base, iov.iov_len,
		     MSG_DONTWAIT | MSG_NOSIGNAL | MSG_ZEROCOPY * rng_below(rng, 2));
		break;
	default:
		iov.iov_len = rng_below(rng, 100);
		process_vm_readv(getpid(), &iov, 1, &iov, 1, 0);
	}
	count(C_mmaps);
}

/* A child uses the port too: through its descriptor, and through a mapping of its own. */
static void share_with_child(struct rng *rng)
{
	struct port *port = pick_mapped_port(rng);
	struct sm_sync sync = { .flags = SM_SYNC_TX | SM_SYNC_RX };
	struct sm_ring *ring;
	pid_t child;

	if (!port)
		return;
	child = fork();
	if (child) {
		if (child > 0)
			count(C_forks);
		return;
	}
	alarm(3);
	if (!sigsetjmp(after_fault, 0)) {
		/* The parent's mapping is not here: this faults. */
		*(volatile char *)port->arena = 1;
	}
	if (mmap(port->arena, port->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 atomic_load(&port->fd), 0) == MAP_FAILED)
		_exit(0);
	if (sigsetjmp(after_fault, 0))
		_exit(0);
	for (uint32_t k = rng_below(rng, 200); k; k--) {
		ring = pick_pair(rng, port)->tx;
		rng_mutate(rng, &ring->slot[rng_below(rng, port->ntx)], sizeof(struct sm_slot));
		ring->head = rng_below(rng, port->ntx);
		ring->cur = ring->head;
		ioctl(atomic_load(&port->fd), SMIOC_SYNC, &sync);
	}
	_exit(0);
}

const struct action map_actions[] = {
	{ "map_any", 6, map_any },
	{ "map_state", 2, map_state },
	{ "map_twice", 2, map_twice },
	{ "unmap_part", 2, unmap_part },
	{ "move", 2, move },
	{ "advise", 3, advise },
	{ "protect", 2, protect },
	{ "lend", 6, lend },
	{ "share_with_child", 1, share_with_child },
};
const size_t map_action_count = ARRAY_SIZE(map_actions);
