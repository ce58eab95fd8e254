// SPDX-License-Identifier: GPL-2.0
/*
 * A hostile process: its threads, its ports and descriptors, its life and death.
 *
 * The threads use ports and descriptors without asking each other: that one closes what the other
 * has just picked is wanted.  A fault in user space ends only the action that ran into it.
 */
#include "hostile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct hostile self;

_Thread_local sigjmp_buf after_fault;
static _Thread_local bool fault_expected;

/* -- picking ---------------------------------------------------------------------------------- */

struct port *pick_port(struct rng *rng)
{
	return &self.port[rng_below(rng, PORTS)];
}

/* One that is mapped, if there is one. */
struct port *pick_mapped_port(struct rng *rng)
{
	uint32_t first = rng_below(rng, PORTS);

	for (uint32_t i = 0; i < PORTS; i++) {
		struct port *port = &self.port[(first + i) % PORTS];

		if (port->size)
			return port;
	}
	return NULL;
}

struct pair *pick_pair(struct rng *rng, struct port *port)
{
	return &port->pair[rng_below(rng, port->npairs)];
}

int pick_fd(struct rng *rng)
{
	uint32_t first = rng_below(rng, FDS);

	if (rng_one_in(rng, 100))
		return rng_below(rng, 100);
	for (uint32_t i = 0; i < FDS; i++) {
		int fd = atomic_load(&self.fd[(first + i) % FDS]);

		if (fd >= 0)
			return fd;
	}
	return -1;
}

/* Put a descriptor where others find it; what was there is closed. */
void keep_fd(struct rng *rng, int fd)
{
	if (fd >= 0)
		fd = atomic_exchange(&self.fd[rng_below(rng, FDS)], fd);
	if (fd >= 0) {
		close(fd);
		count(C_closes);
	}
}

/* A connection that was there when last heard of; 0 if there is none. */
uint32_t pick_live_id(struct rng *rng, struct port *port)
{
	uint32_t first = rng_below(rng, IDS), id = 0;

	for (uint32_t i = 0; i < IDS && !id; i++)
		id = atomic_load(&port->id[(first + i) % IDS]);
	return id;
}

void forget_id(struct port *port, uint32_t id)
{
	for (uint32_t i = 0; i < IDS; i++) {
		uint32_t gone = id;

		atomic_compare_exchange_strong(&port->id[i], &gone, 0);
	}
}

uint32_t pick_id(struct rng *rng, struct port *port)
{
	return rng_one_in(rng, 16) ? rng_odd(rng) : atomic_load(&port->id[rng_below(rng, IDS)]);
}

/* Where the kernel may read or write @size bytes that are at @good; seldom a bad place. */
void *pick_pointer(struct rng *rng, void *good, size_t size)
{
	struct port *port = pick_port(rng);
	void *slow;

	switch (rng_below(rng, 64)) {
	case 0:
		return NULL;
	case 1:
		return (void *)(uintptr_t)rng_next(rng);
	case 2:
		return (void *)0xffff888000000000;	/* the kernel's */
	case 3:						/* in a mapping, or next to it */
		return port->arena + (rng_next(rng) % (port->size + 4096));
	case 4:
		slow = slow_copy(rng, good, size);
		return slow ? slow : good;
	default:
		return good;
	}
}

/* -- ports ------------------------------------------------------------------------------------ */

/*
 * Sizes beyond the limits are to be tried, those below only up to what lets all processes together
 * fit into memory.
 */
static void limit_size(struct sm_req_register *reg, struct sm_opt_limits *limits)
{
	if (reg->nr_tx_slots <= 16384 && reg->nr_tx_slots > 512)
		reg->nr_tx_slots = 512;
	if (reg->nr_rx_slots <= 16384 && reg->nr_rx_slots > 512)
		reg->nr_rx_slots = 512;
	if (!reg->nr_tx_slots || reg->nr_tx_rings > PAIRS)
		reg->nr_tx_slots = 4;
	if (!reg->nr_rx_slots || reg->nr_tx_rings > PAIRS)
		reg->nr_rx_slots = 4;
	if (reg->nr_extra_bufs <= 1 << 20 && reg->nr_extra_bufs > 2000)
		reg->nr_extra_bufs = 2000;
	if (limits->spare_bufs <= 1 << 20 && limits->spare_bufs > 2000)
		limits->spare_bufs = 2000;
	if (limits->connections <= 1 << 20 && limits->connections > 5000)
		limits->connections = 5000;
}

static void random_register(struct rng *rng, struct sm_req_header *header,
			    struct sm_req_register *reg, struct sm_opt_limits *limits)
{
	static const char * const names[] = {
		"tcp:lo", "tcp:", "tcp", "", "tcp:sm9", "sm0", "netmap:sm0", "vale0:1", "tcp:sm0-0",
		"tcp:sm0/R", "tcp:../..", "tcp:%s%n",
	};
	static const uint32_t slots[] = { 4, 5, 16, 64, 100, 256, 512 };

	*header = (struct sm_req_header){
		.nr_version = SM_API, .nr_reqtype = SM_REQ_REGISTER, .nr_body = (uintptr_t)reg,
	};
	*reg = (struct sm_req_register){
		.nr_tx_slots = slots[rng_below(rng, ARRAY_SIZE(slots))],
		.nr_rx_slots = slots[rng_below(rng, ARRAY_SIZE(slots))],
		.nr_tx_rings = 1 + rng_below(rng, rng_one_in(rng, 3) ? PAIRS : 1),
		.nr_mode = rng_below(rng, 2),
		.nr_extra_bufs = rng_one_in(rng, 4) ? rng_below(rng, 100) : 0,
	};
	reg->nr_rx_rings = reg->nr_tx_rings;
	*limits = (struct sm_opt_limits){
		.opt = { .nro_reqtype = SM_OPT_LIMITS, .nro_size = sizeof(*limits) },
		.spare_bufs = rng_below(rng, 1000),
		.connections = rng_below(rng, 100),
	};
	if (rng_one_in(rng, 2)) {
		header->nr_options = (uintptr_t)limits;
		if (rng_one_in(rng, 16))
			limits->opt.nro_next = (uintptr_t)limits;	/* round and round */
		if (rng_one_in(rng, 16))
			header->nr_options = (uintptr_t)pick_pointer(rng, limits, sizeof(*limits));
		if (rng_one_in(rng, 8))
			rng_mutate(rng, limits, sizeof(*limits));
	}
	if (rng_one_in(rng, 16))
		memset(header->nr_name, 'x', sizeof(header->nr_name));
	else
		snprintf(header->nr_name, sizeof(header->nr_name), "%s",
			 rng_one_in(rng, 16) ? names[rng_below(rng, ARRAY_SIZE(names))] :
			 rng_below(rng, 3) ? "tcp:sm0" : "tcp:sm1");
	if (rng_one_in(rng, 8))
		rng_mutate(rng, header, sizeof(*header));
	if (rng_one_in(rng, 8))
		rng_mutate(rng, reg, sizeof(*reg));
	limit_size(reg, limits);
	if (header->nr_body != (uintptr_t)reg || rng_below(rng, 16))
		return;
	header->nr_body = (uintptr_t)pick_pointer(rng, reg, sizeof(*reg));
}

/* Descriptors of the pairs; the first is synced through one too, beside the port's own. */
static void open_rings(struct port *port)
{
	for (uint32_t i = 0; i < port->npairs; i++) {
		struct sm_ring_req request = { .ring = i };
		int fd = atomic_exchange(&port->pair[i].fd,
					 ioctl(atomic_load(&port->fd), SMIOC_RING, &request));

		if (fd >= 0)
			close(fd);
	}
}

/* Map a registered port into its arena. */
void port_map(struct port *port, const struct sm_req_register *reg)
{
	size_t size = reg->nr_memsize < ARENA_SIZE ? reg->nr_memsize : ARENA_SIZE;
	struct sm_if *nif = (void *)port->arena;

	count(C_mmaps);
	if (mmap(port->arena, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 atomic_load(&port->fd), 0) == MAP_FAILED) {
		count(C_mmaps_refused);
		return;
	}
	port->ntx = reg->nr_tx_slots;
	port->nrx = reg->nr_rx_slots;
	port->npairs = reg->nr_tx_rings < PAIRS ? reg->nr_tx_rings : PAIRS;
	for (uint32_t i = 0; i < port->npairs; i++) {
		port->pair[i].tx = (void *)(port->arena + nif->ring_ofs[i]);
		port->pair[i].rx = (void *)(port->arena + nif->ring_ofs[nif->ni_tx_rings + 1 + i]);
	}
	port->nbufs = (port->arena + size - (char *)port->pair[0].tx -
		       port->pair[0].tx->buf_ofs) / 4096;
	port->size = size;
	open_rings(port);
}

void port_open(struct rng *rng, struct port *port)
{
	struct sm_opt_limits limits;
	struct sm_req_header header;
	struct sm_req_register reg;
	int fd = open("/dev/stackmap", O_RDWR | O_CLOEXEC | (rng_one_in(rng, 4) ? O_NONBLOCK : 0));
	int none = -1;

	if (fd < 0)
		return;
	random_register(rng, &header, &reg, &limits);
	count(C_registers);
	if (ioctl(fd, NIOCCTRL, &header) || header.nr_body != (uintptr_t)&reg ||
	    !atomic_compare_exchange_strong(&port->fd, &none, fd)) {
		keep_fd(rng, fd);
		return;
	}
	count(C_ports);
	memset(&port->counted, 0, sizeof(port->counted));
	port->mine = true;
	port_map(port, &reg);
}

/* A port that another process registered. */
void port_adopt(struct port *port, int fd, const struct sm_req_register *reg)
{
	int none = -1;

	if (!atomic_compare_exchange_strong(&port->fd, &none, fd)) {
		close(fd);
		return;
	}
	port->mine = false;
	port_map(port, reg);
}

/* Add to the counters what the kernel has counted since last time. */
void port_count(struct port *port)
{
	struct sm_stats now, *last = &port->counted;

	if (!port->mine || pthread_mutex_trylock(&port->counting))
		return;
	if (!ioctl(atomic_load(&port->fd), SMIOC_STATS, &now) && now.syncs >= last->syncs) {
		uint64_t bad = now.bad_slots + now.unknown_conn;
		uint64_t last_bad = last->bad_slots + last->unknown_conn;

		count_n(C_slots_refused, bad - last_bad);
		count_n(C_slots_tried, bad - last_bad + now.slots_sent - last->slots_sent +
			now.slots_again - last->slots_again + now.dead_conn - last->dead_conn);
		count_n(C_syncs, now.syncs - last->syncs);
		*last = now;
	}
	pthread_mutex_unlock(&port->counting);
}

/* Either of descriptor and mapping keeps the port open. */
void port_close(struct port *port, bool mapping_first)
{
	int fd;

	port_count(port);
	port->mine = false;
	fd = atomic_exchange(&port->fd, -1);
	if (fd < 0)
		return;
	for (int i = 0; i < PAIRS && !mapping_first; i++)	/* else they outlive the port */
		close(atomic_exchange(&port->pair[i].fd, -1));
	if (!mapping_first)
		close(fd);
	port->size = 0;
	mmap(port->arena, ARENA_SIZE, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	if (mapping_first)
		close(fd);
	count(C_closes);
}

/* Steps besides those that are in it already; waits are short. */
void random_sync(struct rng *rng, struct sm_sync *sync)
{
	sync->flags |= rng_below(rng, 8);
	if (sync->flags & SM_SYNC_POLL)
		sync->spin_us = rng_below(rng, 100);
	if (sync->flags & SM_SYNC_RX && rng_one_in(rng, 8)) {
		sync->flags |= SM_SYNC_WAIT;
		sync->deadline_ns = (now_ms() + rng_below(rng, 4)) * 1000000;
		if (rng_one_in(rng, 64))
			sync->deadline_ns = -1;		/* until a kill */
	}
}

/* Any of the ways to have a pair of rings looked at; returns which were: SM_SYNC_TX, SM_SYNC_RX. */
uint32_t port_sync(struct rng *rng, struct port *port, struct pair *pair)
{
	struct sm_sync sync = { .flags = SM_SYNC_TX };
	struct pollfd pfd = { .events = POLLIN | POLLOUT };
	int fd = atomic_load(&pair->fd);
	uint32_t looked = 0;

	if (fd < 0 || (pair == port->pair && rng_one_in(rng, 2)))
		fd = atomic_load(&port->fd);
	switch (rng_below(rng, 8)) {
	case 0:
		pfd.fd = fd;
		count(C_polls);
		if (poll(&pfd, 1, rng_below(rng, 3)) >= 0 && fd >= 0 &&
		    !(pfd.revents & (POLLERR | POLLNVAL)))
			looked = SM_SYNC_TX | SM_SYNC_RX;
		break;
	case 1:
		count(C_ioctls);
		looked = rng_one_in(rng, 2) ? SM_SYNC_TX : SM_SYNC_RX;
		if (ioctl(fd, looked == SM_SYNC_TX ? NIOCTXSYNC : NIOCRXSYNC))
			looked = 0;
		break;
	default:
		random_sync(rng, &sync);
		count(C_ioctls);
		if (ioctl(fd, SMIOC_SYNC, &sync))
			count(C_ioctls_failed);
		else
			looked = sync.flags & (SM_SYNC_TX | SM_SYNC_RX);
	}
	port_count(port);
	return looked;
}

/* -- pages that come late --------------------------------------------------------------------- */

/*
 * Memory whose first touch sleeps: the kernel may hold locks while it copies from there.  One
 * thread serves the faults, late and sometimes never: then only a kill ends the wait.
 */
#define SLOW_PAGES	64UL

static char *slow_memory, *slow_content;
static int slow_fd = -1;

static void *slow_serve(void *arg)
{
	struct rng rng = rng_make(shared->seed, self.number, 0, 0xfffd);
	struct pollfd pfd = { .fd = slow_fd, .events = POLLIN };
	struct uffd_msg msg;

	(void)arg;
	for (;;) {
		struct uffdio_copy copy = { .len = 4096 };

		if (poll(&pfd, 1, -1) != 1 || read(slow_fd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		sleep_ms(rng_below(&rng, rng_one_in(&rng, 4) ? 2000 : 50));
		copy.dst = msg.arg.pagefault.address & ~4095ULL;
		copy.src = copy.dst - (uintptr_t)slow_memory + (uintptr_t)slow_content;
		ioctl(slow_fd, UFFDIO_COPY, &copy);
	}
	return NULL;
}

void slow_pages_start(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;

	slow_fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (slow_fd < 0)
		return;		/* a kernel without */
	slow_memory = mmap(NULL, 2 * SLOW_PAGES * 4096, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	slow_content = slow_memory + SLOW_PAGES * 4096;
	area.range.start = (uintptr_t)slow_memory;
	area.range.len = SLOW_PAGES * 4096;
	if (ioctl(slow_fd, UFFDIO_API, &api) || ioctl(slow_fd, UFFDIO_REGISTER, &area))
		die("userfaultfd");
	if (pthread_create(&thread, NULL, slow_serve, NULL))
		die("pthread_create");
}

/* The same bytes in a page that is not there yet; NULL if there is no such thing. */
void *slow_copy(struct rng *rng, const void *data, size_t size)
{
	size_t at = 4096 * rng_below(rng, SLOW_PAGES) + rng_below(rng, 4096 - size);

	if (slow_fd < 0)
		return NULL;
	memcpy(slow_content + at, data, size);
	madvise(slow_memory + (at & ~4095UL), 4096, MADV_DONTNEED);
	count(C_slow_pages);
	return slow_memory + at;
}

/* -- life and death --------------------------------------------------------------------------- */

static void on_fault(int signal)
{
	if (!fault_expected)
		_exit(100 + signal);
	count(C_faults);
	siglongjmp(after_fault, 1);
}

struct table {
	const struct action *action;
	const size_t *count;
	uint32_t weight;
};

static const struct table tables[] = {
	{ ring_actions, &ring_action_count, 8 },
	{ ioctl_actions, &ioctl_action_count, 3 },
	{ socket_actions, &socket_action_count, 5 },
	{ map_actions, &map_action_count, 1 },
};

static void run_one(const struct table *table, struct rng *rng)
{
	const struct action *action = table->action;
	uint32_t weight = 0, at;

	for (size_t i = 0; i < *table->count; i++)
		weight += table->action[i].weight;
	for (at = rng_below(rng, weight); at >= action->weight; action++)
		at -= action->weight;
	action->run(rng);
}

static void *thread_run(void *arg)
{
	struct rng rng = *(struct rng *)arg;

	/* Faults come back here; the handler leaves no signal blocked. */
	sigsetjmp(after_fault, 0);
	fault_expected = true;
	for (;;) {
		const struct table *table = tables;
		uint32_t at = rng_below(&rng, 8 + 3 + 5 + 1);

		while (at >= table->weight)
			at -= table++->weight;
		run_one(table, &rng);
	}
	return NULL;
}

static void make_listener(void)
{
	struct sockaddr_in6 any = {
		.sin6_family = AF_INET6, .sin6_port = htons(HOSTILE_PORT + self.number),
	};

	self.listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(self.listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	/* The last life's listener may not be quite gone. */
	if (!bind(self.listener, (void *)&any, sizeof(any)))
		listen(self.listener, 64);
}

/* An orderly end, in one of the orders; the conductor may come first, with a kill. */
static _Noreturn void end_life(struct rng *rng)
{
	bool ports_first = rng_one_in(rng, 2);

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < PORTS && ports_first == !round; i++)
			port_close(&self.port[i], rng_one_in(rng, 2));
		for (int i = 0; i < FDS && ports_first == !!round; i++)
			close(atomic_load(&self.fd[i]));
	}
	_exit(0);
}

void hostile_run(uint32_t number, uint32_t life)
{
	static struct rng thread_rng[THREADS];
	struct sigaction fault = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	struct rng rng = rng_make(shared->seed, number, life, 0);
	pthread_t thread;

	self.number = number;
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	signal(SIGCHLD, SIG_IGN);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 512, 512 });
	for (int i = 0; i < PORTS; i++) {
		self.port[i].fd = -1;
		self.port[i].npairs = 1;
		for (int k = 0; k < PAIRS; k++)
			self.port[i].pair[k].fd = -1;
		pthread_mutex_init(&self.port[i].counting, NULL);
		self.port[i].arena = mmap(NULL, ARENA_SIZE, PROT_NONE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (self.port[i].arena == MAP_FAILED)
			_exit(1);
	}
	for (int i = 0; i < FDS; i++)
		self.fd[i] = -1;
	self.diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);
	make_listener();
	slow_pages_start();
	port_open(&rng, &self.port[0]);
	for (uint32_t i = 0; i < THREADS; i++) {
		thread_rng[i] = rng_make(shared->seed, number, life, 1 + i);
		if (pthread_create(&thread, NULL, thread_run, &thread_rng[i]))
			_exit(1);
	}
	/* Half of them live until the conductor kills them. */
	sleep_ms(rng_one_in(&rng, 2) ? 100 + rng_below(&rng, 3000) : 1000000);
	end_life(&rng);
}
