// SPDX-License-Identifier: GPL-2.0
/*
 * The hot loop of the load generator: one thread, one epoll set, at most one request outstanding
 * per connection.  A request costs one send(), one recv(), one clock reading and its share of an
 * epoll_wait(), so that a client on a slow machine is not what is measured.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "_load.h"
#include "_mark.h"

#define EVENTS 256
#define SCRATCH (256 * 1024)
#define NSEC 1000000000LL
#define SUB_BITS 10			/* 1024 buckets per power of two */
#define SUBS (1u << SUB_BITS)
#define BUCKETS ((64 - SUB_BITS) * SUBS)
#define STRIDE 7919			/* a prime: connections start at different exchanges */

enum state { IDLE, SENDING, RECEIVING, DEAD };

struct connection {
	int fd;
	enum state state;
	bool recorded;
	uint32_t exchange;
	size_t next;			/* in order[] */
	size_t done;			/* bytes of the request sent, then of the reply received */
	int64_t due;			/* closed loop: when sent; open loop: when it had to be */
};

struct load {
	int epoll;
	unsigned int connections;
	unsigned int alive;
	unsigned int outstanding;
	unsigned int window;		/* closed loop: outstanding at most */
	unsigned int turn;		/* where the search for the next idle connection begins */
	const struct load_exchange *exchanges;
	const uint32_t *order;
	size_t order_len;
	int64_t interval;
	int64_t from, until;		/* of the phase */
	bool running;			/* start the next request when a reply is complete */
	bool recording;
	uint64_t started;		/* in this phase; open loop: of those due in it */
	uint64_t max_started;
	struct load_result result;
	char scratch[SCRATCH];
	uint64_t buckets[BUCKETS];
	struct connection connection[];
};

int64_t load_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NSEC + now.tv_nsec;
}

#define BYTES(...) ".byte " #__VA_ARGS__
#define BYTES_OF(...) BYTES(__VA_ARGS__)

void load_mark(void)
{
#ifdef __x86_64__
	__asm__ volatile(BYTES_OF(MARK_BYTES));
#endif
}

static unsigned int bucket_of(uint64_t ns)
{
	unsigned int shift;

	if (ns < 2 * SUBS)
		return ns;
	shift = 63 - SUB_BITS - __builtin_clzll(ns);
	return shift * SUBS + (ns >> shift);
}

unsigned int load_buckets(void)
{
	return BUCKETS;
}

int64_t load_bucket_ns(unsigned int bucket)
{
	unsigned int shift;

	if (bucket < 2 * SUBS)
		return bucket;
	shift = bucket / SUBS - 1;
	return ((int64_t)(bucket - shift * SUBS) << shift) + (1LL << shift) / 2;
}

uint64_t load_bucket_count(const struct load *load, unsigned int bucket)
{
	return bucket < BUCKETS ? load->buckets[bucket] : 0;
}

void load_result(const struct load *load, struct load_result *result)
{
	*result = load->result;
}

static int watch(struct load *load, struct connection *c, int op, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	return epoll_ctl(load->epoll, op, c->fd, &event) ? -errno : 0;
}

static bool is_outstanding(const struct connection *c)
{
	return c->state == SENDING || c->state == RECEIVING;
}

static void bury(struct load *load, struct connection *c)
{
	if (is_outstanding(c))
		load->outstanding--;
	epoll_ctl(load->epoll, EPOLL_CTL_DEL, c->fd, NULL);
	shutdown(c->fd, SHUT_RDWR);
	c->state = DEAD;
	load->alive--;
}

static void lose(struct load *load, struct connection *c)
{
	load->result.lost++;
	bury(load, c);
}

static void reject(struct load *load, struct connection *c, size_t offset, int expected,
		   int received)
{
	struct load_result *result = &load->result;

	if (!result->wrong++) {
		result->wrong_connection = c - load->connection;
		result->wrong_exchange = c->exchange;
		result->wrong_offset = offset;
		result->wrong_expected = expected;
		result->wrong_received = received;
	}
	bury(load, c);
}

static void send_some(struct load *load, struct connection *c)
{
	const struct load_exchange *exchange = &load->exchanges[c->exchange];
	bool waited = c->done > 0 || c->state == SENDING;
	ssize_t sent;

	while (c->done < exchange->request_len) {
		sent = send(c->fd, exchange->request + c->done, exchange->request_len - c->done,
			    MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN) {
			if (c->state != SENDING && watch(load, c, EPOLL_CTL_MOD, EPOLLOUT))
				return lose(load, c);
			c->state = SENDING;
			return;
		}
		if (sent < 0)
			return lose(load, c);
		c->done += sent;
	}
	if (waited && watch(load, c, EPOLL_CTL_MOD, EPOLLIN))
		return lose(load, c);
	c->state = RECEIVING;
	c->done = 0;
}

static void start(struct load *load, struct connection *c, int64_t now)
{
	c->exchange = load->order[c->next];
	if (++c->next == load->order_len)
		c->next = 0;
	c->done = 0;
	if (!load->interval)
		c->due = now;
	c->recorded = load->recording && c->due >= load->from;
	if (c->recorded && !load->result.first_start_ns)
		load->result.first_start_ns = now;
	if (c->due >= load->from)
		load->started++;
	load->outstanding++;
	c->state = RECEIVING;		/* outstanding, in case it is lost at once */
	send_some(load, c);
}

static bool may_start(const struct load *load)
{
	return load->running && load->started < load->max_started;
}

static bool is_due(const struct load *load, const struct connection *c, int64_t now)
{
	return !load->interval || (c->due <= now && c->due < load->until);
}

/* The next connection in turn that has nothing outstanding; NULL if there is none. */
static struct connection *next_idle(struct load *load)
{
	unsigned int n;

	for (n = 0; n < load->connections; n++) {
		struct connection *c = &load->connection[load->turn];

		if (++load->turn == load->connections)
			load->turn = 0;
		if (c->state == IDLE)
			return c;
	}
	return NULL;
}

static void finish(struct load *load, struct connection *c)
{
	int64_t now = load_now_ns();
	int64_t latency = now - c->due;

	if (c->recorded) {
		load->result.requests++;
		load->result.last_reply_ns = now;
		load->buckets[bucket_of(latency)]++;
	}
	if (load->recording && now < load->until)
		load->result.answered++;
	load->outstanding--;
	c->state = IDLE;
	c->due += load->interval * load->connections;
	if (load->window < load->connections)
		c = next_idle(load);
	if (c && may_start(load) && is_due(load, c, now))
		start(load, c, now);
}

/* How many of the bytes received are those of the reply, before the first that is not. */
static size_t right_bytes(const struct load_exchange *exchange, size_t done, const char *received,
			  size_t count)
{
	size_t i;

	if (!memcmp(received, exchange->reply + done, count))
		return count;
	for (i = 0; i < count; i++) {
		bool any = done + i - exchange->any_at < exchange->any_len;

		if (received[i] != exchange->reply[done + i] && !any)
			break;
	}
	return i;
}

static void receive_some(struct load *load, struct connection *c)
{
	const struct load_exchange *exchange = &load->exchanges[c->exchange];
	size_t expected = c->state == RECEIVING ? exchange->reply_len - c->done : 0;
	size_t compared, right;
	ssize_t got;

	got = recv(c->fd, load->scratch, SCRATCH, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0)
		return lose(load, c);
	compared = (size_t)got < expected ? (size_t)got : expected;
	right = right_bytes(exchange, c->done, load->scratch, compared);
	if (right < compared)
		return reject(load, c, c->done + right,
			      (unsigned char)exchange->reply[c->done + right],
			      (unsigned char)load->scratch[right]);
	if ((size_t)got > expected)
		return reject(load, c, c->done + expected, -1,
			      (unsigned char)load->scratch[expected]);
	c->done += got;
	if (c->done == exchange->reply_len)
		finish(load, c);
}

/* Start what is due on idle connections; returns when the next one will be. */
static int64_t start_due(struct load *load)
{
	int64_t now = load_now_ns(), earliest = INT64_MAX;
	struct connection *idle;
	unsigned int i;

	if (load->window < load->connections) {
		while (may_start(load) && load->outstanding < load->window &&
		       (idle = next_idle(load)))
			start(load, idle, now);
		return INT64_MAX;
	}
	for (i = 0; i < load->connections; i++) {
		struct connection *c = &load->connection[i];

		if (c->state != IDLE)
			continue;
		if (!may_start(load))
			return INT64_MAX;
		if (is_due(load, c, now))
			start(load, c, now);
		else if (c->due < earliest)
			earliest = c->due;
	}
	return earliest;
}

static int serve_events(struct load *load, int64_t until)
{
	struct epoll_event events[EVENTS];
	struct timespec wait, *timeout = NULL;
	int64_t left;
	int ready, i;

	if (until != INT64_MAX) {
		left = until - load_now_ns();
		if (left < 0)
			left = 0;
		wait.tv_sec = left / NSEC;
		wait.tv_nsec = left % NSEC;
		timeout = &wait;
	}
	ready = epoll_pwait2(load->epoll, events, EVENTS, timeout, NULL);
	if (ready < 0)
		return -errno;
	for (i = 0; i < ready; i++) {
		struct connection *c = events[i].data.ptr;

		if (c->state == SENDING)
			send_some(load, c);
		else if (c->state != DEAD)
			receive_some(load, c);
	}
	return 0;
}

void load_begin(struct load *load, int64_t duration_ns, uint64_t max_started, int record)
{
	bool adjoins = load->interval && load->until != INT64_MAX;
	int64_t now = adjoins ? load->until : load_now_ns();
	unsigned int i;

	for (i = 0; load->interval && !load->from && i < load->connections; i++)
		load->connection[i].due = now + i * load->interval;
	load->from = now;
	load->until = duration_ns ? now + duration_ns : INT64_MAX;
	load->started = 0;
	load->max_started = max_started ? max_started : UINT64_MAX;
	load->recording = record;
	load->running = true;
}

int load_run(struct load *load)
{
	int64_t next = start_due(load);
	int err;

	for (;;) {
		if (!load->alive)
			return -EPIPE;
		if (!may_start(load) || load_now_ns() >= load->until)
			return 0;
		err = serve_events(load, next < load->until ? next : load->until);
		if (err)
			return err;
		if (load->interval)
			next = start_due(load);
	}
}

/* How many requests were due in the phase and are not sent. */
static uint64_t overdue(const struct load *load)
{
	int64_t step = load->interval * load->connections, due;
	uint64_t found = 0;
	unsigned int i;

	if (!may_start(load) || load->until == INT64_MAX)
		return 0;
	for (i = 0; i < load->connections; i++) {
		const struct connection *c = &load->connection[i];

		due = c->due + (is_outstanding(c) ? step : 0);
		if (c->state != DEAD && due < load->until)
			found += (load->until - due - 1) / step + 1;
	}
	return found;
}

int load_drain(struct load *load, int64_t until_ns)
{
	int err;

	load->running = load->interval;		/* an open loop owes what was due in the phase */
	if (load->running)
		start_due(load);
	while (load->outstanding && load_now_ns() < until_ns) {
		err = serve_events(load, until_ns);
		if (err)
			return err;
	}
	load->result.unanswered = load->outstanding + overdue(load);
	load->running = false;
	return 0;
}

struct load *load_new(const int *fds, unsigned int connections,
		      const struct load_exchange *exchanges, const uint32_t *order,
		      size_t order_len, int64_t interval_ns)
{
	struct load *load;
	unsigned int i;
	int err;

	load = calloc(1, sizeof(*load) + connections * sizeof(load->connection[0]));
	if (!load)
		return NULL;
	load->connections = connections;
	load->alive = connections;
	load->window = connections;
	load->exchanges = exchanges;
	load->order = order;
	load->order_len = order_len;
	load->interval = interval_ns;
	load->until = INT64_MAX;
	load->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (load->epoll < 0)
		goto err_free;
	for (i = 0; i < connections; i++) {
		struct connection *c = &load->connection[i];

		c->fd = fds[i];
		c->next = (size_t)i * STRIDE % order_len;
		err = watch(load, c, EPOLL_CTL_ADD, EPOLLIN);
		if (err) {
			errno = -err;
			goto err_close;
		}
	}
	return load;

err_close:
	err = errno;
	close(load->epoll);
	errno = err;
err_free:
	free(load);
	return NULL;
}

void load_set_window(struct load *load, unsigned int window)
{
	load->window = window;
}

void load_free(struct load *load)
{
	close(load->epoll);
	free(load);
}
