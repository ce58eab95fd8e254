/* SPDX-License-Identifier: GPL-2.0 */
/* One hostile process: what its threads share, and use without asking each other. */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <pthread.h>
#include <setjmp.h>

#include "fuzz.h"

#define THREADS		4
#define PORTS		4
#define PAIRS		4
#define FDS		48
#define IDS		16
#define ARENA_SIZE	(64UL << 20)

struct pair {
	atomic_int fd;			/* its own descriptor; -1: none */
	struct sm_ring *tx, *rx;
};

struct port {
	atomic_int fd;			/* -1: none */
	char *arena;			/* addresses that nothing else uses; the mapping is at its start */
	size_t size;			/* bytes mapped; 0: none */
	uint32_t npairs, ntx, nrx, nbufs;
	struct pair pair[PAIRS];
	_Atomic uint32_t id[IDS];	/* what ATTACH returned lately */
	bool mine;			/* registered here, so counted here */
	pthread_mutex_t counting;
	struct sm_stats counted;
};

struct hostile {
	uint32_t number;
	struct port port[PORTS];
	atomic_int fd[FDS];		/* sockets and others; -1: none */
	int listener;
	int diag;			/* netlink, to destroy sockets */
};

extern struct hostile self;

/* Something that a thread may do. */
struct action {
	const char *name;
	uint32_t weight;
	void (*run)(struct rng *rng);
};

extern const struct action ring_actions[], ioctl_actions[], map_actions[], socket_actions[];
extern const size_t ring_action_count, ioctl_action_count, map_action_count, socket_action_count;

/* Where a thread goes on after a fault; each thread sets its own. */
extern _Thread_local sigjmp_buf after_fault;

struct port *pick_port(struct rng *rng);
struct port *pick_mapped_port(struct rng *rng);
struct pair *pick_pair(struct rng *rng, struct port *port);
int pick_fd(struct rng *rng);
void keep_fd(struct rng *rng, int fd);
uint32_t pick_id(struct rng *rng, struct port *port);
uint32_t pick_live_id(struct rng *rng, struct port *port);
void forget_id(struct port *port, uint32_t id);
void connect_port(struct rng *rng, struct port *port);
void *pick_pointer(struct rng *rng, void *good, size_t size);

void port_open(struct rng *rng, struct port *port);
void port_map(struct port *port, const struct sm_req_register *reg);
void port_adopt(struct port *port, int fd, const struct sm_req_register *reg);
void port_close(struct port *port, bool mapping_first);
void port_count(struct port *port);
void random_sync(struct rng *rng, struct sm_sync *sync);
uint32_t port_sync(struct rng *rng, struct port *port, struct pair *pair);

void *slow_copy(struct rng *rng, const void *data, size_t size);
void slow_pages_start(void);

#endif
