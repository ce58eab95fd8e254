/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Drive many connected stream sockets with fixed requests, check every reply byte for byte, and
 * count latencies.  This file is also read by cffi, which knows no preprocessor.
 */

/* One request and the only reply to it that is right, but for bytes of it that may be any. */
struct load_exchange {
	const char *request;
	size_t request_len;
	const char *reply;
	size_t reply_len;
	size_t any_at, any_len;
};

struct load_result {
	uint64_t requests;	/* recorded, answered right */
	uint64_t answered;	/* right replies while the recorded phase lasted, whenever sent */
	uint64_t wrong;		/* replies with a wrong or a surplus byte */
	uint64_t lost;		/* connections closed or reset by the server */
	uint64_t unanswered;	/* requests without a complete reply at the end, sent or overdue */
	int64_t first_start_ns;	/* of the recorded requests (CLOCK_MONOTONIC) */
	int64_t last_reply_ns;
	/* what the first wrong reply looked like */
	unsigned int wrong_connection;
	unsigned int wrong_exchange;
	uint64_t wrong_offset;
	int wrong_expected;	/* -1: a byte too many */
	int wrong_received;
};

struct load;

/*
 * The load takes no ownership: sockets (non-blocking), exchanges and order must outlive it.
 * Connection i sends the exchanges named by order[], beginning at order[i * stride % order_len].
 * interval_ns 0 is a closed loop: one request outstanding per connection, always.  Otherwise a
 * request is due every interval_ns, on the connections in turn, and its latency counts from when
 * it was due, whenever it could be sent.  The first is due when the first phase begins.  Returns
 * NULL with errno set.
 */
struct load *load_new(const int *fds, unsigned int connections,
		      const struct load_exchange *exchanges, const uint32_t *order,
		      size_t order_len, int64_t interval_ns);
void load_free(struct load *load);

/*
 * Closed loop only: have no more than this many requests outstanding, on the connections in
 * turn.
 */
void load_set_window(struct load *load, unsigned int window);

/*
 * Begin a phase of this length (0: any), in which at most this many requests are started (0: any).
 * With record set, the requests of this phase are recorded: in a closed loop those sent in it, in
 * an open loop those due in it, even if they are sent later.  An open loop's phase begins where
 * one of fixed length ended, whenever this is called.
 */
void load_begin(struct load *load, int64_t duration_ns, uint64_t max_started, int record);

/*
 * Send and receive until the phase ends.  Returns 0 when a limit was reached, -EINTR on a signal
 * (call again), -EPIPE when no connection is left, or another -errno.
 */
int load_run(struct load *load);

/*
 * Wait for what is outstanding, until a time (CLOCK_MONOTONIC).  An open loop still sends what was
 * due in the last phase: a stall at its end would hide these requests otherwise.  Returns 0, or
 * -EINTR (call again).  What has no reply when the time is up counts as unanswered.
 */
int load_drain(struct load *load, int64_t until_ns);

void load_result(const struct load *load, struct load_result *result);

/* Latencies are counted in buckets; a bucket is at most 1/1024 of its latency wide. */
unsigned int load_buckets(void);
int64_t load_bucket_ns(unsigned int bucket);	/* middle of the bucket */
uint64_t load_bucket_count(const struct load *load, unsigned int bucket);

int64_t load_now_ns(void);

/* Do nothing, visibly for a counter of instructions outside of the machine (_count_plugin.c). */
void load_mark(void);
