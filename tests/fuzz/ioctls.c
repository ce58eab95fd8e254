// SPDX-License-Identifier: GPL-2.0
/* Every ioctl command, valid, mutated and garbage; and other system calls on a port. */
#include "hostile.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

/* Room for every command's argument, and more. */
union argument {
	struct sm_req_header header;
	struct sm_attach attach;
	struct sm_conn_ctl conn;
	struct sm_credits credits;
	struct sm_ring_req ring;
	struct sm_sync sync;
	struct sm_stats stats;
	uint8_t bytes[256];
};

static void fill_attach(struct rng *rng, struct port *port, union argument *arg)
{
	arg->attach.fd = pick_fd(rng);
	arg->attach.ring = rng_one_in(rng, 2) ? SM_RING_ANY : rng_below(rng, port->npairs + 1);
	arg->attach.flags = rng_one_in(rng, 3) ? SM_ATTACH_LISTENER : 0;
}

static void attached(struct rng *rng, struct port *port, union argument *arg, int result)
{
	count(result ? C_attaches_refused : C_attaches);
	if (!result)
		atomic_store(&port->id[rng_below(rng, IDS)], arg->attach.id);
}

static void fill_id(struct rng *rng, struct port *port, union argument *arg)
{
	arg->conn.id = pick_id(rng, port);
}

static void detached(struct rng *rng, struct port *port, union argument *arg, int result)
{
	(void)rng;
	(void)port;
	(void)arg;
	if (!result)
		count(C_detaches);
}

static void fill_rxctl(struct rng *rng, struct port *port, union argument *arg)
{
	arg->conn.id = pick_id(rng, port);
	arg->conn.flags = rng_below(rng, 2);
}

/* Few, many, all that there are, or any number. */
static void fill_credits(struct rng *rng, struct port *port, union argument *arg)
{
	arg->credits.id = pick_id(rng, port);
	arg->credits.slots = rng_one_in(rng, 3) ? SM_CREDITS_UNLIMITED :
			     rng_one_in(rng, 2) ? rng_below(rng, 4) : rng_next(rng);
}

static void fill_sync(struct rng *rng, struct port *port, union argument *arg)
{
	(void)port;
	random_sync(rng, &arg->sync);
	if (rng_one_in(rng, 4))
		arg->sync.spin_us = rng_below(rng, 1002);	/* more than is allowed, or not polled for */
}

static void fill_ring(struct rng *rng, struct port *port, union argument *arg)
{
	arg->ring.ring = rng_below(rng, port->npairs + 1);
}

/* The new descriptor goes among the others; sometimes it becomes the pair's. */
static void ring_opened(struct rng *rng, struct port *port, union argument *arg, int fd)
{
	if (fd >= 0 && arg->ring.ring < PAIRS && rng_one_in(rng, 2))
		fd = atomic_exchange(&port->pair[arg->ring.ring].fd, fd);
	keep_fd(rng, fd);
}

static void fill_header(struct rng *rng, struct port *port, union argument *arg)
{
	(void)port;
	arg->header.nr_version = SM_API;
	arg->header.nr_reqtype = rng_one_in(rng, 2) ? SM_REQ_REGISTER : rng_below(rng, 20);
	strcpy(arg->header.nr_name, "tcp:sm0");
	/* A registered port refuses it, others have no such body. */
	arg->header.nr_body = (uintptr_t)arg->bytes;
	arg->header.nr_options = rng_one_in(rng, 2) ? (uintptr_t)arg->bytes : 0;
}

struct command {
	unsigned long number;
	uint32_t weight;
	void (*fill)(struct rng *rng, struct port *port, union argument *arg);
	void (*done)(struct rng *rng, struct port *port, union argument *arg, int result);
};

static const struct command commands[] = {
	{ SMIOC_ATTACH, 8, fill_attach, attached },
	{ SMIOC_DETACH, 2, fill_id, detached },
	{ SMIOC_RXCTL, 2, fill_rxctl },
	{ SMIOC_CREDITS, 2, fill_credits },
	{ SMIOC_SYNC, 4, fill_sync },
	{ SMIOC_RING, 2, fill_ring, ring_opened },
	{ SMIOC_STATS, 1 },
	{ NIOCTXSYNC, 1 },
	{ NIOCRXSYNC, 1 },
	{ NIOCCTRL, 1, fill_header },
};

static const struct command *pick_command(struct rng *rng)
{
	const struct command *command = commands;
	uint32_t weight = 0, at;

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		weight += commands[i].weight;
	for (at = rng_below(rng, weight); at >= command->weight; command++)
		at -= command->weight;
	return command;
}

static void run_command(struct rng *rng, bool mutate)
{
	const struct command *command = pick_command(rng);
	struct port *port = pick_port(rng);
	unsigned long number = command->number;
	union argument arg = { };
	void *pointer = &arg;
	int result;

	if (command->fill)
		command->fill(rng, port, &arg);
	if (mutate) {
		if (rng_one_in(rng, 2))
			rng_mutate(rng, &arg, rng_one_in(rng, 8) ? sizeof(arg) : 16);
		pointer = pick_pointer(rng, &arg, _IOC_SIZE(number));
		if (rng_one_in(rng, 16))
			number ^= 1u << rng_below(rng, 32);	/* another size, direction, number */
		if (rng_one_in(rng, 32))
			number = rng_next(rng);
	}
	result = ioctl(atomic_load(&port->fd), number, pointer);
	count(C_ioctls);
	if (result < 0)
		count(C_ioctls_failed);
	if (command->done && number == command->number && pointer == &arg)
		command->done(rng, port, &arg, result);
}

static void valid_command(struct rng *rng)
{
	run_command(rng, false);
}

static void mutated_command(struct rng *rng)
{
	run_command(rng, true);
}

static void open_port(struct rng *rng)
{
	struct port *port = pick_port(rng);

	if (port->fd < 0)
		port_open(rng, port);
	else if (rng_one_in(rng, 16))
		port_close(port, rng_one_in(rng, 2));
}

/* A second descriptor of a port: closing one must not disturb the other. */
static void duplicate_port(struct rng *rng)
{
	keep_fd(rng, fcntl(atomic_load(&pick_port(rng)->fd), F_DUPFD_CLOEXEC, 0));
}

static void wait_with_epoll(struct rng *rng)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET * rng_below(rng, 2) };
	int set = epoll_create1(EPOLL_CLOEXEC);

	epoll_ctl(set, EPOLL_CTL_ADD, atomic_load(&pick_port(rng)->fd), &event);
	epoll_ctl(set, EPOLL_CTL_ADD, pick_fd(rng), &event);
	epoll_wait(set, &event, 1, rng_below(rng, 5));
	count(C_polls);
	keep_fd(rng, set);
}

/* File operations that ports do not support. */
static void other_calls(struct rng *rng)
{
	int fd = atomic_load(&pick_port(rng)->fd), other = pick_fd(rng);
	struct iovec iov = { &iov, sizeof(iov) };

	switch (rng_below(rng, 8)) {
	case 0:
		(void)!read(fd, &iov, sizeof(iov));
		break;
	case 1:
		(void)!write(fd, &iov, sizeof(iov));
		break;
	case 2:
		lseek(fd, rng_next(rng), rng_below(rng, 5));
		break;
	case 3:
		sendfile(other, fd, NULL, 4096);
		break;
	case 4:
		splice(fd, NULL, other, NULL, 4096, SPLICE_F_NONBLOCK);
		break;
	case 5:
		fcntl(fd, F_SETFL, O_ASYNC | (rng_one_in(rng, 2) ? O_NONBLOCK : 0));
		break;
	case 6:
		fsync(fd);
		break;
	default:
		syncfs(fd);
		ioctl(fd, FIONREAD, &iov);
	}
	count(C_ioctls);
}

const struct action ioctl_actions[] = {
	{ "valid_command", 10, valid_command },
	{ "mutated_command", 8, mutated_command },
	{ "open_port", 4, open_port },
	{ "duplicate_port", 1, duplicate_port },
	{ "wait_with_epoll", 1, wait_with_epoll },
	{ "other_calls", 1, other_calls },
};
const size_t ioctl_action_count = ARRAY_SIZE(ioctl_actions);
