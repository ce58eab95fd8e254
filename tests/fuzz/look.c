// SPDX-License-Identifier: GPL-2.0
/*
 * Observers: dumps of the generic netlink family, and the tracepoints, on and off, while
 * ports, rings and connections come and go.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "../../kmod/uapi/stackmap_netlink.h"

#define TRACING		"/sys/kernel/tracing"
#define INSTANCE	TRACING "/instances/fuzz"

/* -- generic netlink -------------------------------------------------------------------------- */

struct request {
	struct nlmsghdr header;
	struct genlmsghdr genl;
	struct nlattr attr;
	char name[16];
};

static int ask(int fd, uint16_t type, uint16_t flags, uint8_t cmd, const char *name)
{
	struct request request = {
		.header = {
			.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags,
			.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN),
		},
		.genl = { .cmd = cmd, .version = 1 },
	};

	if (name) {
		snprintf(request.name, sizeof(request.name), "%s", name);
		request.attr.nla_type = CTRL_ATTR_FAMILY_NAME;
		request.attr.nla_len = NLA_HDRLEN + strlen(name) + 1;
		request.header.nlmsg_len += NLA_ALIGN(request.attr.nla_len);
	}
	return send(fd, &request, request.header.nlmsg_len, 0);
}

/* The family's number; 0 if the kernel did not say. */
static uint16_t find_family(int fd)
{
	char data[8192] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct nlmsghdr *header = (void *)data;
	ssize_t size, at = NLMSG_LENGTH(GENL_HDRLEN);

	if (ask(fd, GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, SM_GENL_NAME) < 0)
		return 0;
	size = recv(fd, data, sizeof(data), 0);
	if (size < at || header->nlmsg_type != GENL_ID_CTRL)
		return 0;
	while (at + NLA_HDRLEN <= size) {
		struct nlattr *attr = (void *)(data + at);

		if (attr->nla_type == CTRL_ATTR_FAMILY_ID)
			return *(uint16_t *)((char *)attr + NLA_HDRLEN);
		if (attr->nla_len < NLA_HDRLEN)
			break;
		at += NLA_ALIGN(attr->nla_len);
	}
	return 0;
}

/* Count the messages of one datagram; true if the dump goes on. */
static bool read_dump(char *data, ssize_t size)
{
	struct nlmsghdr *header = (void *)data;

	for (; NLMSG_OK(header, size); header = NLMSG_NEXT(header, size)) {
		if (header->nlmsg_type == NLMSG_DONE) {
			count(C_dumps);
			return false;
		}
		if (header->nlmsg_type == NLMSG_ERROR)
			return false;
		count(C_dumped);
	}
	return true;
}

/* Dump ports, rings or connections; slowly sometimes, and not always to the end. */
void netlink_dump(struct rng *rng)
{
	static const uint8_t commands[] = { SM_CMD_PORT_GET, SM_CMD_RING_GET, SM_CMD_CONN_GET };
	static _Atomic uint16_t family;
	char data[32768] __attribute__((aligned(NLMSG_ALIGNTO)));
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	struct timeval patience = { .tv_sec = 5 };
	bool leaves = rng_one_in(rng, 8), slow = rng_one_in(rng, 4);
	ssize_t size;

	if (fd < 0)
		return;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (!family)
		family = find_family(fd);
	if (!family || ask(fd, family, NLM_F_DUMP, commands[rng_below(rng, ARRAY_SIZE(commands))],
			   NULL) < 0)
		goto out;
	do {
		if (leaves && rng_one_in(rng, 3))
			break;
		if (slow)
			sleep_ms(rng_below(rng, 50));
		size = recv(fd, data, slow ? 4096 : sizeof(data), 0);
	} while (size > 0 && read_dump(data, size));
out:
	close(fd);
}

/* -- tracepoints ------------------------------------------------------------------------------ */

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

/* All tracepoints, or one of them. */
static void trace_switch(struct rng *rng, bool on)
{
	static const char * const events[] = {
		"sm_send", "sm_pin", "sm_release", "sm_receive", "sm_event", "sm_refuse",
	};
	char path[128];

	if (rng_one_in(rng, 2))
		snprintf(path, sizeof(path), INSTANCE "/events/stackmap/enable");
	else
		snprintf(path, sizeof(path), INSTANCE "/events/stackmap/%s/enable",
			 events[rng_below(rng, ARRAY_SIZE(events))]);
	if (!write_file(path, on ? "1" : "0"))
		fail("%s: %s", path, strerror(errno));
	count(C_trace_switches);
}

/* Have the kernel write out what it noted: some of it, or all. */
static void trace_read(struct rng *rng)
{
	int fd = open(INSTANCE "/trace", O_RDONLY | O_CLOEXEC);
	uint32_t left = 1 + rng_below(rng, 64);
	char data[16384];
	ssize_t n;

	while (left-- && (n = read(fd, data, sizeof(data))) > 0)
		for (char *at = data; (at = memmem(at, data + n - at, ": sm_", 5)); at++)
			count(C_trace_lines);
	close(fd);
	if (rng_one_in(rng, 2))
		write_file(INSTANCE "/trace", "");
}

/* Before anybody looks; also what the hostile processes leave to the onlooker. */
static void trace_start(void)
{
	if (access(TRACING "/events", F_OK) &&
	    mount("tracefs", TRACING, "tracefs", 0, NULL))
		die("tracefs");
	if (mkdir(INSTANCE, 0700) && errno != EEXIST)
		die(INSTANCE);
	write_file(INSTANCE "/buffer_size_kb", "256");
}

void look_end(void)
{
	rmdir(INSTANCE);
}

_Noreturn void look_run(void)
{
	struct rng rng = rng_make(shared->seed, 5, 0, 0xfffe);

	trace_start();
	while (!stopping()) {
		sleep_ms(rng_below(&rng, 300));
		switch (rng_below(&rng, 6)) {
		case 0:
			trace_switch(&rng, true);
			break;
		case 1:
			trace_switch(&rng, false);
			break;
		case 2:
			trace_read(&rng);
			break;
		default:
			netlink_dump(&rng);
		}
	}
	write_file(INSTANCE "/events/stackmap/enable", "0");
	_exit(0);
}
