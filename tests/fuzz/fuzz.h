/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A fuzzer for stackmap: what its parts share.
 *
 *	main.c		the conductor: starts everybody, watches, counts, judges
 *	honest.c	a connection on a port of its own that must stay right all the time
 *	peers.c		the other end of the hostile connections: floods, stalls, resets
 *	network.c	namespaces, links and qdiscs; and what happens to them meanwhile
 *	look.c		observers: netlink dumps, tracepoints
 *	hostile.c	a hostile process: its threads, ports and descriptors, its life and death
 *	rings.c, ioctls.c, maps.c, sockets.c	what a hostile thread may do, as tables
 *
 * Everything random comes from the seed: each thread has a generator of its own, made from the
 * seed, the process's number and life, and the thread's number.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../kmod/uapi/stackmap.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* -- random numbers (splitmix64) -------------------------------------------------------------- */

struct rng {
	uint64_t state;
};

static inline uint64_t mix64(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static inline uint64_t rng_next(struct rng *rng)
{
	return mix64(rng->state += 0x9e3779b97f4a7c15ULL);
}

static inline uint32_t rng_below(struct rng *rng, uint32_t n)
{
	return n ? rng_next(rng) % n : 0;
}

/* true once in n times */
static inline bool rng_one_in(struct rng *rng, uint32_t n)
{
	return !rng_below(rng, n);
}

static inline struct rng rng_make(uint64_t seed, uint32_t a, uint32_t b, uint32_t c)
{
	return (struct rng){ mix64(seed ^ mix64(a + mix64(b + mix64(c + 1)))) };
}

uint32_t rng_odd(struct rng *rng);
void rng_mutate(struct rng *rng, void *data, size_t size);

/* -- what all processes share ----------------------------------------------------------------- */

/*
 * slots_mutated are those that a hostile thread altered at random and then had the kernel look at;
 * the kernel may have found nothing wrong with some.  The kernel's own counts: slots_refused for
 * what is in them, or for a connection that is not there; slots_tried are all that it processed.
 */
#define FUZZ_COUNTERS(X)							\
	X(slots_mutated) X(slots_refused) X(slots_tried) X(syncs) X(polls)		\
	X(ioctls) X(ioctls_failed)						\
	X(registers) X(ports) X(attaches) X(attaches_refused) X(detaches)	\
	X(mmaps) X(mmaps_refused) X(munmaps) X(faults) X(scribbles) X(slow_pages)	\
	X(connects) X(accepts) X(socket_calls) X(closes) X(destroys)		\
	X(fds_passed) X(fds_taken) X(forks) X(lives) X(kills)			\
	X(peer_connections) X(peer_resets) X(link_flaps) X(qdisc_changes)	\
	X(nic_deletions) X(dumps) X(dumped) X(trace_switches) X(trace_lines)	\
	X(honest_rounds) X(honest_rounds_ipv6) X(honest_detaches)		\
	X(honest_sent) X(honest_received)

enum counter {
#define X(name) C_##name,
	FUZZ_COUNTERS(X)
#undef X
	COUNTERS
};

#define MAX_PROCESSES	16

struct shared {
	_Atomic uint64_t counter[COUNTERS];
	atomic_bool stop;
	atomic_bool failed;
	char failure[512];
	uint64_t seed;
	uint32_t processes;
	/* how many bytes each end of the honest connection sent in this round, once it knows */
	_Atomic uint64_t honest_port_total;
	_Atomic uint64_t honest_peer_total;
	/* a socket pair on which hostile processes pass descriptors to each other */
	int passing[2];
};

extern struct shared *shared;


static inline void count_n(enum counter which, uint64_t n)
{
	atomic_fetch_add_explicit(&shared->counter[which], n, memory_order_relaxed);
}

static inline void count(enum counter which)
{
	count_n(which, 1);
}

static inline bool stopping(void)
{
	return atomic_load_explicit(&shared->stop, memory_order_relaxed);
}

void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die(const char *what);
uint64_t now_ms(void);
void sleep_ms(uint32_t ms);

/* -- the network ------------------------------------------------------------------------------ */

/*
 * Two NICs, each a veth whose other end is in the namespace "peer".  The first carries the honest
 * connection and hostile ones and stays up; what happens to NICs happens to the second.
 */
#define NICS		2
#define NIC_NAME(i)	((i) ? "sm1" : "sm0")
#define HONEST_PORT	5999
#define HOSTILE_PORT	6000	/* + the process's number: its listener */
#define PEERS_PORT	7000

struct sockaddr_storage;
unsigned int network_address(struct sockaddr_storage *to, uint32_t nic, bool peer, bool v6,
			     uint16_t port);
void network_up(void);
void network_down(void);
void network_enter_peer(void);
_Noreturn void network_run(void);

/* -- looking on ------------------------------------------------------------------------------- */

void netlink_dump(struct rng *rng);
void look_end(void);
_Noreturn void look_run(void);

/* -- the processes ---------------------------------------------------------------------------- */

_Noreturn void honest_port_run(void);
_Noreturn void honest_peer_run(void);
_Noreturn void peers_run(void);
_Noreturn void hostile_run(uint32_t number, uint32_t life);

#endif
