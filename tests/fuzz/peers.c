// SPDX-License-Identifier: GPL-2.0
/*
 * The other end of the hostile connections, in the namespace "peer".  Each connection gets a
 * manner and a time to live.  None lives long, so that nothing waits for it for ever.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS	192
#define LIFE_MS		5000

static uint8_t data[65536];

struct peer {
	int fd;				/* -1: none */
	void (*act)(struct peer *peer, struct rng *rng);
	uint64_t end;
	uint32_t reset_at_end;
};

static struct peer peer[CONNECTIONS];

static void discard(struct peer *p, struct rng *rng)
{
	(void)rng;
	while (recv(p->fd, data, sizeof(data), MSG_DONTWAIT) == sizeof(data))
		;
}

static void sip(struct peer *p, struct rng *rng)
{
	recv(p->fd, data, 1 + rng_below(rng, 100), MSG_DONTWAIT);
}

static void stall(struct peer *p, struct rng *rng)
{
	(void)p;
	(void)rng;
}

static void echo(struct peer *p, struct rng *rng)
{
	ssize_t n = recv(p->fd, data, 1 + rng_below(rng, sizeof(data)), MSG_DONTWAIT);

	if (n > 0)
		send(p->fd, data, n, MSG_DONTWAIT);
}

static void flood(struct peer *p, struct rng *rng)
{
	discard(p, rng);
	send(p->fd, data, 1 + rng_below(rng, sizeof(data)), MSG_DONTWAIT);
}

static void drip(struct peer *p, struct rng *rng)
{
	discard(p, rng);
	send(p->fd, data, 1 + rng_below(rng, 3), MSG_DONTWAIT);
}

static void urgent(struct peer *p, struct rng *rng)
{
	discard(p, rng);
	send(p->fd, data, 1 + rng_below(rng, 10), MSG_DONTWAIT | MSG_OOB);
}

static void half_close(struct peer *p, struct rng *rng)
{
	discard(p, rng);
	if (rng_one_in(rng, 50))
		shutdown(p->fd, SHUT_WR);
}

static void half_close_reading(struct peer *p, struct rng *rng)
{
	flood(p, rng);
	if (rng_one_in(rng, 50))
		shutdown(p->fd, SHUT_RD);
}

static void (*const manners[])(struct peer *, struct rng *) = {
	discard, discard, sip, stall, echo, echo, flood, flood, drip, urgent, half_close,
	half_close_reading,
};

static void peer_end(struct peer *p)
{
	struct linger linger = { .l_onoff = 1 };

	if (p->reset_at_end) {
		setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		count(C_peer_resets);
	}
	close(p->fd);
	p->fd = -1;
}

static void peer_begin(struct rng *rng, int fd)
{
	struct peer *p = &peer[rng_below(rng, CONNECTIONS)];

	if (fd < 0)
		return;
	if (p->fd >= 0)
		peer_end(p);
	p->fd = fd;
	p->act = manners[rng_below(rng, ARRAY_SIZE(manners))];
	p->end = now_ms() + rng_below(rng, rng_one_in(rng, 3) ? 100 : LIFE_MS);
	p->reset_at_end = rng_one_in(rng, 3);
	if (rng_one_in(rng, 3))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){ rng_below(rng, 20000) }, sizeof(int));
	if (rng_one_in(rng, 3))
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	count(C_peer_connections);
}

static int call(struct rng *rng)
{
	struct sockaddr_storage address;
	bool v6 = rng_one_in(rng, 2);
	socklen_t size = network_address(&address, rng_below(rng, NICS), false, v6,
					 HOSTILE_PORT + rng_below(rng, shared->processes));
	int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	connect(fd, (void *)&address, size);
	return fd;
}

/* A socket of this namespace for the hostile processes, which may not attach it. */
static void pass_one(int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { };
	struct sm_req_register none = { };
	struct iovec iov = { &none, sizeof(none) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	sendmsg(shared->passing[0], &msg, MSG_DONTWAIT);
}

void peers_run(void)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(PEERS_PORT) };
	struct rng rng = rng_make(shared->seed, 4, 0, 0xfffe);
	struct pollfd pfd = { .events = POLLIN };

	network_enter_peer();
	memset(data, 'p', sizeof(data));
	for (int i = 0; i < CONNECTIONS; i++)
		peer[i].fd = -1;
	pfd.fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (bind(pfd.fd, (void *)&any, sizeof(any)) || listen(pfd.fd, 64))
		die("hostile peers: listen");

	while (!stopping()) {
		uint64_t now;

		poll(&pfd, 1, 5);
		for (int i = 0; i < 8; i++)
			peer_begin(&rng, accept4(pfd.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
		if (rng_one_in(&rng, 4))
			peer_begin(&rng, call(&rng));
		now = now_ms();
		for (int i = 0; i < CONNECTIONS; i++) {
			struct peer *p = &peer[i];

			if (p->fd < 0)
				continue;
			if (rng_one_in(&rng, 4))
				p->act(p, &rng);
			if (now >= p->end)
				peer_end(p);
			else if (rng_one_in(&rng, 1000))
				pass_one(p->fd);
		}
	}
	_exit(0);
}
