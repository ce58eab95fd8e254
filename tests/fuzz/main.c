// SPDX-License-Identifier: GPL-2.0
/* The conductor: starts everybody, watches, counts, judges. */
#include "fuzz.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REPORT_MS	10000
/* Far beyond what TCP's timers may take on the honest NIC, which is never down. */
#define STALL_MS	90000
#define DEATH_MS	120000
/* Two retries of an orphan and their end, each after at most TCP_RTO_MAX. */
#define LINGER_MS	(3 * 120 * 1000)
/* No new hostile life below this: what the last ones left in flight needs memory until it ends. */
#define MEMORY_LOW_KB	(200 << 10)

struct shared *shared;

struct child {
	const char *name;
	pid_t pid;		/* 0: not running */
	uint32_t life;
	uint64_t end;		/* kill it then; 0: it ends by itself */
	bool killed;
};

static struct child hostile[MAX_PROCESSES];

enum { HONEST_PORT_SIDE, HONEST_PEER_SIDE, PEERS, NETWORK, LOOK, HELPERS };

static struct child helper[HELPERS] = {
	[HONEST_PORT_SIDE] = { "the honest port" },
	[HONEST_PEER_SIDE] = { "the honest peer" },
	[PEERS] = { "the hostile peers" },
	[NETWORK] = { "the network" },
	[LOOK] = { "the onlooker" },
};

/* -- for everybody ---------------------------------------------------------------------------- */

void die(const char *what)
{
	fail("%s: %s", what, strerror(errno));
	_exit(1);
}

/* The first failure counts, and ends the run. */
void fail(const char *format, ...)
{
	va_list args;

	if (!atomic_exchange(&shared->failed, true)) {
		va_start(args, format);
		vsnprintf(shared->failure, sizeof(shared->failure), format, args);
		va_end(args);
		dprintf(STDOUT_FILENO, "failure %s\n", shared->failure);
	}
	atomic_store(&shared->stop, true);
}

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

void sleep_ms(uint32_t ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

/* A number at a limit of something, or near one, or any. */
uint32_t rng_odd(struct rng *rng)
{
	static const uint32_t limits[] = {
		0, 1, 2, 3, 4, 63, 64, 65, 255, 256, 1023, 1024, 1025, 4095, 4096, 4097, 16384, 16385,
		65535, 65536, INT32_MAX, (uint32_t)INT32_MIN, UINT32_MAX - 1, UINT32_MAX,
	};

	switch (rng_below(rng, 4)) {
	case 0:
		return limits[rng_below(rng, ARRAY_SIZE(limits))];
	case 1:
		return rng_below(rng, 16);
	case 2:
		return rng_below(rng, 8192);
	default:
		return rng_next(rng);
	}
}

/* Change a few bytes, or one field's worth. */
void rng_mutate(struct rng *rng, void *data, size_t size)
{
	uint32_t n = 1 + rng_below(rng, 3);

	while (n--) {
		uint8_t *at = (uint8_t *)data + rng_below(rng, size);
		uint32_t odd = rng_odd(rng);
		size_t room = (uint8_t *)data + size - at;

		if (rng_one_in(rng, 2))
			*at ^= 1u << rng_below(rng, 8);
		else
			memcpy(at, &odd, room < sizeof(odd) ? room : sizeof(odd));
	}
}

/* -- children --------------------------------------------------------------------------------- */

static void start_helper(struct child *child, void (*run)(void))
{
	child->pid = fork();
	if (child->pid < 0)
		die("fork");
	if (!child->pid)
		run();
}

static void start_hostile(uint32_t number)
{
	struct child *child = &hostile[number];
	struct rng rng = rng_make(shared->seed, number, child->life, 0xffff);

	child->name = "a hostile process";
	child->killed = false;
	child->end = now_ms() + 100 + rng_below(&rng, rng_one_in(&rng, 4) ? 20000 : 4000);
	child->pid = fork();
	if (child->pid < 0) {
		child->pid = 0;		/* short of memory: later */
		return;
	}
	if (!child->pid)
		hostile_run(number, child->life);
	child->life++;
	count(C_lives);
}

static void say_where_it_hangs(const struct child *child)
{
	char command[128];

	snprintf(command, sizeof(command),
		 "grep -H . /proc/%d/task/*/wchan; cat /proc/%d/task/*/stack; echo w >/proc/sysrq-trigger",
		 child->pid, child->pid);
	if (system(command))
		dprintf(STDOUT_FILENO, "no stacks of process %d\n", child->pid);
}

/* A killed process that does not die hangs in the kernel. */
static void kill_child(struct child *child, uint64_t now)
{
	if (!child->killed) {
		kill(child->pid, SIGKILL);
		child->killed = true;
		child->end = now + DEATH_MS;
		count(C_kills);
	} else if (now >= child->end) {
		say_where_it_hangs(child);
		fail("%s (%d) does not die", child->name, child->pid);
		child->pid = 0;
	}
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < MAX_PROCESSES; i++)
			if (hostile[i].pid == pid)
				hostile[i].pid = 0;
		for (int i = 0; i < HELPERS; i++) {
			if (helper[i].pid != pid)
				continue;
			helper[i].pid = 0;
			if (!stopping() || (WIFSIGNALED(status) && !helper[i].killed))
				fail("%s ended with status %#x", helper[i].name, status);
		}
	}
}

static uint64_t memory_available_kb(void)
{
	uint64_t kb = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

static void conduct_hostile(uint64_t now)
{
	uint64_t available = memory_available_kb();

	for (uint32_t i = 0; i < shared->processes; i++) {
		if (hostile[i].pid && now >= hostile[i].end)
			kill_child(&hostile[i], now);
		else if (!hostile[i].pid && available >= MEMORY_LOW_KB)
			start_hostile(i);
	}
}

static bool running(const struct child *children, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (children[i].pid)
			return true;
	return false;
}

static void end_all_hostile(void)
{
	while (reap(), running(hostile, shared->processes)) {
		for (uint32_t i = 0; i < shared->processes; i++)
			if (hostile[i].pid)
				kill_child(&hostile[i], now_ms());
		sleep_ms(20);
	}
}

/* Kill helpers that do not end by themselves until @end; returns when all are gone. */
static void end_helpers(uint64_t end)
{
	while (reap(), running(helper, HELPERS)) {
		uint64_t now = now_ms();

		for (uint32_t i = 0; i < HELPERS; i++)
			if (helper[i].pid && now >= end)
				kill_child(&helper[i], now);
		sleep_ms(20);
	}
}

/* -- reports ---------------------------------------------------------------------------------- */

static void report(const char *what, uint64_t start)
{
	static const char * const name[] = {
#define X(name) #name,
		FUZZ_COUNTERS(X)
#undef X
	};
	uint64_t ms = now_ms() - start;

	printf("%s {\"seed\": %" PRIu64 ", \"seconds\": %" PRIu64 ".%03u", what, shared->seed,
	       ms / 1000, (unsigned int)(ms % 1000));
	for (int i = 0; i < COUNTERS; i++)
		printf(", \"%s\": %" PRIu64, name[i], atomic_load(&shared->counter[i]));
	printf("}\n");
	fflush(stdout);
}

/* The honest connection must move, in both directions. */
static void check_progress(uint64_t now)
{
	static const enum counter watched[] = { C_honest_sent, C_honest_received };
	static uint64_t last[ARRAY_SIZE(watched)], since[ARRAY_SIZE(watched)];

	for (size_t i = 0; i < ARRAY_SIZE(watched); i++) {
		uint64_t value = atomic_load(&shared->counter[watched[i]]);

		if (value != last[i] || !since[i]) {
			last[i] = value;
			since[i] = now;
		} else if (now - since[i] > STALL_MS) {
			if (system("ss -tinmoe; nsenter --net=/run/netns/peer ss -tinmoe; tc -s qdisc"))
				dprintf(STDOUT_FILENO, "no sockets to show\n");
			for (int k = 0; k < HELPERS; k++)
				say_where_it_hangs(&helper[k]);
			fail("the honest connection has not %s a byte for %d s",
			     i ? "received" : "sent", STALL_MS / 1000);
		}
	}
}

static int module_references(void)
{
	FILE *file = fopen("/sys/module/stackmap/refcnt", "re");
	int n;

	if (!file || fscanf(file, "%d", &n) != 1)
		die("the module's reference count");
	fclose(file);
	return n;
}

/*
 * TCP ends by its own timers what the dead have left to it, and holds the module until then.  A
 * hostile application can make these long.
 */
static void await_release(void)
{
	uint64_t start = now_ms(), waited;
	int n;

	while ((n = module_references())) {
		waited = now_ms() - start;
		if (waited > LINGER_MS) {
			if (system("ss -tinmoea"))
				dprintf(STDOUT_FILENO, "no sockets to show\n");
			fail("%d references on the module are left after %d s", n,
			     LINGER_MS / 1000);
			return;
		}
		sleep_ms(20);
	}
	dprintf(STDOUT_FILENO, "TCP let go of the last buffers after %" PRIu64 " ms\n",
		now_ms() - start);
}

static void usage(void)
{
	fprintf(stderr, "usage: fuzz [--seed N] [--seconds N] [--processes N]\n");
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "seconds", required_argument, NULL, 't' },
		{ "processes", required_argument, NULL, 'p' },
		{ }
	};
	uint64_t start, next_report, seconds = 60;
	int c;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	shared->seed = 1;
	shared->processes = 3;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 's')
			shared->seed = strtoull(optarg, NULL, 0);
		else if (c == 't')
			seconds = strtoull(optarg, NULL, 0);
		else if (c == 'p')
			shared->processes = strtoul(optarg, NULL, 0);
		else
			usage();
	}
	if (optind != argc || shared->processes > MAX_PROCESSES)
		usage();
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, shared->passing))
		die("socketpair");

	network_up();
	start = now_ms();
	next_report = start + REPORT_MS;
	start_helper(&helper[HONEST_PORT_SIDE], honest_port_run);
	start_helper(&helper[HONEST_PEER_SIDE], honest_peer_run);
	start_helper(&helper[PEERS], peers_run);
	start_helper(&helper[NETWORK], network_run);
	start_helper(&helper[LOOK], look_run);

	while (!stopping()) {
		uint64_t now = now_ms();

		reap();
		conduct_hostile(now);
		check_progress(now);
		if (now >= next_report) {
			report("progress", start);
			next_report += REPORT_MS;
		}
		if (now - start >= seconds * 1000)
			atomic_store(&shared->stop, true);
		sleep_ms(20);
	}
	end_all_hostile();
	/* Let the honest connections finish their round; one that cannot has failed. */
	end_helpers(now_ms() + STALL_MS);
	for (int i = 0; i < HELPERS; i++)
		if (helper[i].killed)
			fail("%s did not finish", helper[i].name);
	close(shared->passing[0]);
	close(shared->passing[1]);
	network_down();
	look_end();
	await_release();
	report("result", start);
	return shared->failed;
}
