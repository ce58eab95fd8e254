// SPDX-License-Identifier: GPL-2.0
/*
 * Echo servers as a C programmer would write them, to measure sockets and rings without Python.
 *
 * Both send at once, queue what is not taken, and read nothing more from a client while much of its
 * echo is queued.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stackmap.h"

#include "_ring.h"
#include "_ring_hot.h"
#include "_echo.h"

#define READY		256
#define CHUNK		65536
#define QUEUE_MAX	(1 << 20)	/* bytes queued from which a client is not read from */
#define BUCKETS		16384		/* of connections, by number; a power of two */

struct queue {
	char *data;
	size_t len, room;
	bool last;		/* nothing more comes: close once it is empty */
};

/* Make room for more bytes in front of the queued ones or behind them; returns where. */
static char *queue_add(struct queue *queue, size_t len, bool in_front)
{
	if (queue->len + len > queue->room) {
		size_t room = 2 * (queue->len + len);
		char *data = realloc(queue->data, room);

		if (!data)
			return NULL;
		queue->data = data;
		queue->room = room;
	}
	queue->len += len;
	if (!in_front)
		return queue->data + queue->len - len;
	memmove(queue->data + len, queue->data, queue->len - len);
	return queue->data;
}

static void queue_take(struct queue *queue, size_t len)
{
	queue->len -= len;
	memmove(queue->data, queue->data + len, queue->len);
}

static void queue_free(struct queue *queue)
{
	free(queue->data);
	*queue = (struct queue){ 0 };
}

/* -- on epoll -- */

#define BUSY_BUDGET	64		/* packets looked for at a time */

/* Since Linux 6.9; not in the headers of earlier ones. */
#ifndef EPIOCSPARAMS
struct epoll_params {
	uint32_t busy_poll_usecs;
	uint16_t busy_poll_budget;
	uint8_t prefer_busy_poll;
	uint8_t pad;
};
#define EPIOCSPARAMS	_IOW(0x8A, 0x01, struct epoll_params)
#endif

struct epoll_server {
	int epoll;
	int listener;
	int busy_usecs;			/* 0 or how long epoll_wait() looks for packets itself */
	struct queue *queues;		/* by descriptor */
	int size;
	char chunk[CHUNK];
};

/* Where epoll has no parameters, it polls as sysctl's net.core.busy_poll and the sockets say. */
static int epoll_be_busy(const struct epoll_server *server)
{
	struct epoll_params params = {
		.busy_poll_usecs = server->busy_usecs,
		.busy_poll_budget = BUSY_BUDGET,
		.prefer_busy_poll = 1,
	};

	if (!ioctl(server->epoll, EPIOCSPARAMS, &params))
		return 0;
	return errno == ENOTTY || errno == EINVAL ? 0 : -errno;
}

static int epoll_be_busy_on(const struct epoll_server *server, int fd)
{
	int budget = BUSY_BUDGET, on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &server->busy_usecs, sizeof(int)) ||
	    setsockopt(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof(budget)))
		return -errno;
	return 0;
}

static int epoll_accept(struct epoll_server *server)
{
	struct epoll_event wanted = { .events = EPOLLIN };
	int fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	int on = 1;

	if (fd < 0)
		return errno == ECONNABORTED || errno == EINTR ? 0 : -errno;
	if (fd >= server->size) {
		int size = 2 * (fd + 1);
		struct queue *queues = realloc(server->queues, size * sizeof(*queues));

		if (!queues) {
			close(fd);
			return -ENOMEM;
		}
		memset(queues + server->size, 0, (size - server->size) * sizeof(*queues));
		server->queues = queues;
		server->size = size;
	}
	wanted.data.fd = fd;
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    (server->busy_usecs && epoll_be_busy_on(server, fd)) ||
	    epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &wanted)) {
		close(fd);
		return -errno;
	}
	return 0;
}

static int epoll_want(const struct epoll_server *server, int fd)
{
	const struct queue *queue = &server->queues[fd];
	bool reading = queue->len < QUEUE_MAX && !queue->last;
	struct epoll_event wanted = {
		.events = (queue->len ? EPOLLOUT : 0) | (reading ? EPOLLIN : 0),
		.data.fd = fd,
	};

	return epoll_ctl(server->epoll, EPOLL_CTL_MOD, fd, &wanted);
}

/* Send what is queued; -1 if the connection has ended. */
static int epoll_flush(const struct epoll_server *server, int fd)
{
	struct queue *queue = &server->queues[fd];
	ssize_t sent = write(fd, queue->data, queue->len);

	if (sent < 0)
		return errno == EAGAIN ? 0 : -1;
	queue_take(queue, sent);
	return queue->last && !queue->len ? -1 : epoll_want(server, fd);
}

/* Send back what a client sent; -1 if the connection has ended. */
static int epoll_echo(struct epoll_server *server, int fd)
{
	struct queue *queue = &server->queues[fd];
	ssize_t got = read(fd, server->chunk, CHUNK), sent = 0;
	char *behind;

	if (got < 0)
		return errno == EAGAIN ? 0 : -1;
	if (!got) {
		queue->last = true;
		return queue->len ? epoll_want(server, fd) : -1;
	}
	if (!queue->len)
		sent = write(fd, server->chunk, got);
	if (sent == got)
		return 0;
	if (sent < 0 && errno != EAGAIN)
		return -1;
	if (sent < 0)
		sent = 0;
	behind = queue_add(queue, got - sent, false);
	if (!behind)
		return -1;
	memcpy(behind, server->chunk + sent, got - sent);
	return epoll_want(server, fd);
}

int echo_on_epoll(int listener, int busy_usecs)
{
	struct epoll_event wanted = { .events = EPOLLIN, .data.fd = listener };
	struct epoll_event ready[READY];
	struct epoll_server *server;
	int n, err;

	server = calloc(1, sizeof(*server));
	if (!server)
		return -ENOMEM;
	server->listener = listener;
	server->busy_usecs = busy_usecs;
	server->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (server->epoll < 0 || epoll_ctl(server->epoll, EPOLL_CTL_ADD, listener, &wanted))
		return -errno;
	err = busy_usecs ? epoll_be_busy(server) : 0;
	if (err)
		return err;
	for (;;) {
		n = epoll_wait(server->epoll, ready, READY, -1);
		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;

			if (fd == listener) {
				err = epoll_accept(server);
				if (err)
					return err;
				continue;
			}
			if (ready[i].events & EPOLLOUT)
				err = epoll_flush(server, fd);
			else
				err = epoll_echo(server, fd);
			if (err) {
				queue_free(&server->queues[fd]);
				close(fd);
			}
		}
	}
}

/* -- on rings -- */

struct ring_conn {
	uint32_t id;
	int fd;
	bool paused;
	struct queue queue;
	struct ring_conn *next;
};

struct ring_server {
	const struct smr_port *port;	/* several servers', each on a ring of its own */
	uint32_t ring;
	struct smr_pair pair;
	int listener;
	bool starved;			/* the ring was full; no event says when it is not */
	struct ring_conn *conns[BUCKETS];
};

static struct ring_conn **ring_find(struct ring_server *server, uint32_t id)
{
	struct ring_conn **at = &server->conns[id & (BUCKETS - 1)];

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	return at;
}

static void ring_close(struct ring_conn **at)
{
	struct ring_conn *conn = *at;

	*at = conn->next;
	close(conn->fd);
	queue_free(&conn->queue);
	free(conn);
}

static int ring_accept(struct ring_server *server)
{
	struct smr_attached attached = { .ring = server->ring };
	struct ring_conn *conn, **at;
	int fd, err;

	fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return errno == ECONNABORTED || errno == EINTR ? 0 : -errno;
	err = smr_attach(server->port, fd, 0, &attached);
	conn = err ? NULL : calloc(1, sizeof(*conn));
	if (!conn) {
		close(fd);
		return err == -ENOTCONN ? 0 : err ? err : -ENOMEM;	/* reset meanwhile */
	}
	conn->id = attached.id;
	conn->fd = fd;
	at = &server->conns[conn->id & (BUCKETS - 1)];
	conn->next = *at;
	*at = conn;
	return 0;
}

/* Queue what the kernel refused for now ahead of what is queued already. */
static int ring_requeue(struct ring_server *server)
{
	const struct smr_segment *refused = server->pair.refused;
	int n = server->pair.found[1];

	server->pair.found[1] = 0;
	while (n--) {
		struct ring_conn *conn = *ring_find(server, refused[n].id);
		char *front;

		if (!conn || refused[n].err != EAGAIN)
			continue;
		front = queue_add(&conn->queue, refused[n].len, true);
		if (!front)
			return -ENOMEM;
		memcpy(front, smr_buffer(&server->pair, refused[n].buf) + refused[n].start,
		       refused[n].len);
	}
	return 0;
}

/* Put queued bytes into slots, as long as the kernel takes them. */
static int ring_flush(struct ring_server *server, struct ring_conn *conn)
{
	struct queue *queue = &conn->queue;
	bool synced = false;

	while (queue->len) {
		size_t taken = smr_write(&server->pair, conn->id, queue->data, queue->len);
		size_t left;
		int err;

		queue_take(queue, taken);
		if (!queue->len)
			break;
		if (!taken && synced) {
			server->starved = true;		/* the kernel is short of buffers */
			break;
		}
		/* A sync makes room.  It may refuse slots, which go ahead of the rest. */
		left = queue->len;
		err = smr_send(&server->pair);
		if (err >= 0)
			err = ring_requeue(server);
		if (err < 0)
			return err;
		if (queue->len != left)
			break;				/* SM_SLOT_WRITABLE follows */
		synced = true;
	}
	if (conn->paused && !queue->len) {
		conn->paused = false;
		smr_pause(server->port, conn->id, 0);	/* if it has ended, an event says so */
	}
	return 0;
}

static int ring_echo(struct ring_server *server, struct ring_conn *conn, const char *data,
		     size_t len)
{
	struct queue *queue = &conn->queue;
	bool waits = queue->len;
	size_t taken = waits ? 0 : smr_write(&server->pair, conn->id, data, len);
	char *behind;

	if (taken == len)
		return 0;
	behind = queue_add(queue, len - taken, false);
	if (!behind)
		return -ENOMEM;
	memcpy(behind, data + taken, len - taken);
	if (queue->len > QUEUE_MAX && !conn->paused) {
		conn->paused = true;
		smr_pause(server->port, conn->id, 1);
	}
	return waits ? 0 : ring_flush(server, conn);
}

/* Handle a received slot. */
static int ring_serve(struct ring_server *server, const struct smr_segment *segment)
{
	struct ring_conn **at = ring_find(server, segment->id);
	const struct smr_pair *pair = &server->pair;
	struct ring_conn *conn = *at;
	const char *data;
	int err = 0;

	if (!conn)
		return 0;
	if (!segment->flags) {
		if (segment->len <= SMR_SMALL)
			data = pair->staging + segment->start;
		else	/* the slot's number is in the upper half */
			data = smr_buffer(pair, segment->buf) + (segment->start & 0xffff);
		return ring_echo(server, conn, data, segment->len);
	}
	if (segment->flags & SM_SLOT_WRITABLE)
		err = ring_flush(server, conn);
	if (err)
		return err;
	if (segment->flags & SM_SLOT_EOF)
		conn->queue.last = true;
	if (segment->flags & (SM_SLOT_ERROR | SM_SLOT_CLOSED)) {
		ring_close(at);
		return 0;
	}
	if (!conn->queue.last || conn->queue.len)
		return 0;
	/* Its last slots go to TCP before its end does. */
	err = smr_send(&server->pair);
	if (err >= 0)
		err = ring_requeue(server);
	if (err >= 0 && !conn->queue.len)
		ring_close(at);
	return err < 0 ? err : 0;
}

static int ring_flush_all(struct ring_server *server)
{
	struct ring_conn *conn;
	int err = 0;

	server->starved = false;
	for (int i = 0; i < BUCKETS && !err; i++)
		for (conn = server->conns[i]; conn && !err; conn = conn->next)
			err = ring_flush(server, conn);
	return err;
}

static int ring_open(struct ring_server *server)
{
	struct epoll_event listener = { .events = EPOLLIN, .data.fd = server->listener };
	struct epoll_event rings = { .events = EPOLLIN };
	struct smr_pair *pair = &server->pair;
	int err;

	err = smr_open_pair(pair, server->port, server->ring);
	if (err)
		return err;
	pair->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (pair->epoll < 0)
		return -errno;
	pair->received = calloc(pair->rx->num_slots, sizeof(*pair->received));
	pair->staging = malloc(SMR_STAGING_START + (size_t)pair->rx->num_slots * SMR_SMALL);
	pair->refused = calloc(pair->tx->num_slots, sizeof(*pair->refused));
	pair->found = calloc(3, sizeof(*pair->found));
	pair->watched = calloc(SMR_WATCHED, sizeof(*pair->watched));
	if (!pair->received || !pair->staging || !pair->refused || !pair->found || !pair->watched)
		return -ENOMEM;
	rings.data.fd = pair->fd;
	if (epoll_ctl(pair->epoll, EPOLL_CTL_ADD, pair->fd, &rings) ||
	    epoll_ctl(pair->epoll, EPOLL_CTL_ADD, server->listener, &listener))
		return -errno;
	return 0;
}

struct smr_port *echo_port(const char *device, const char *nic, unsigned int rings)
{
	struct smr_port *port = calloc(1, sizeof(*port));
	struct smr_sizes sizes = { .rings = rings };
	int err;

	if (!port)
		return NULL;
	err = smr_open(port, device, nic, &sizes);
	if (!err)
		return port;
	free(port);
	errno = -err;
	return NULL;
}

int echo_on_ring(int listener, const struct smr_port *port, unsigned int ring)
{
	struct ring_server *server = calloc(1, sizeof(*server));
	int n, err;

	if (!server)
		return -ENOMEM;
	server->listener = listener;
	server->port = port;
	server->ring = ring;
	err = ring_open(server);
	if (err)
		return err;	/* the caller's process ends */
	for (;;) {
		n = smr_exchange(&server->pair, server->starved ? smr_deadline(0.001) : SMR_FOREVER);
		if (n < 0 && n != -EINTR)
			return n;
		err = ring_requeue(server);
		if (!err && server->starved)
			err = ring_flush_all(server);
		for (int i = 0; i < n && !err; i++)
			err = ring_serve(server, &server->pair.received[i]);
		if (!err && server->pair.found[2])
			err = ring_accept(server);
		if (err)
			return err;
	}
}
