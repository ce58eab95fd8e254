// SPDX-License-Identifier: GPL-2.0
/* Namespaces, links and qdiscs; and what happens to the second NIC meanwhile. */
#include "fuzz.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void shell(const char *commands)
{
	if (system(commands))
		fail("a command failed: %s", commands);
}

#define LINK_UP(nic, net)							\
	"ip link add " nic " type veth peer name " nic " netns peer\n"		\
	"ip addr add 10." net ".0.1/24 dev " nic "\n"				\
	"ip addr add fd" net "::1/64 dev " nic " nodad\n"			\
	"ip -n peer addr add 10." net ".0.2/24 dev " nic "\n"			\
	"ip -n peer addr add fd" net "::2/64 dev " nic " nodad\n"		\
	"ip link set " nic " up\n"						\
	"ip -n peer link set " nic " up\n"					\
	"tc qdisc replace dev " nic " root stackmap\n"

#define NIC1_UP LINK_UP("sm1", "79")

void network_up(void)
{
	shell("set -e\n"
	      "ip link set lo up\n"
	      "ip netns add peer\n"
	      "ip -n peer link set lo up\n"
	      LINK_UP("sm0", "78")
	      NIC1_UP
	      /*
	       * What hostile connections leave behind must end, and must not take all memory:
	       * there are thousands an hour, and some lie on a link that is gone.
	       */
	      "for ns in '' 'ip netns exec peer'; do $ns sh -ec '\n"
	      "	cd /proc/sys/net/ipv4\n"
	      "	echo 2 >tcp_orphan_retries\n"
	      "	echo 2 >tcp_fin_timeout\n"
	      "	echo 1 >tcp_tw_reuse\n"
	      "	echo 4096 65536 524288 >tcp_rmem\n"
	      "	echo 4096 65536 524288 >tcp_wmem'\n"
	      "done\n");
}

void network_down(void)
{
	shell("ip netns del peer; ip link del sm0; ip link del sm1 2>/dev/null; true");
}

void network_enter_peer(void)
{
	int fd = open("/run/netns/peer", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die("namespace peer");
	close(fd);
}

unsigned int network_address(struct sockaddr_storage *to, uint32_t nic, bool peer, bool v6,
			     uint16_t port)
{
	char text[INET6_ADDRSTRLEN];

	memset(to, 0, sizeof(*to));
	if (v6) {
		struct sockaddr_in6 *in6 = (void *)to;

		snprintf(text, sizeof(text), "fd%u::%d", 78 + nic, 1 + peer);
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		inet_pton(AF_INET6, text, &in6->sin6_addr);
		return sizeof(*in6);
	} else {
		struct sockaddr_in *in = (void *)to;

		snprintf(text, sizeof(text), "10.%u.0.%d", 78 + nic, 1 + peer);
		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		inet_pton(AF_INET, text, &in->sin_addr);
		return sizeof(*in);
	}
}

/* -- meanwhile -------------------------------------------------------------------------------- */

static void flap(struct rng *rng)
{
	shell("ip link set sm1 down");
	sleep_ms(rng_below(rng, 1500));
	/* IPv6 addresses go with the link. */
	shell("ip link set sm1 up; ip addr replace fd79::1/64 dev sm1 nodad");
	count(C_link_flaps);
}

static void flap_peer(struct rng *rng)
{
	shell("ip -n peer link set sm1 down");
	sleep_ms(rng_below(rng, 1500));
	shell("ip -n peer link set sm1 up; ip -n peer addr replace fd79::2/64 dev sm1 nodad");
	count(C_link_flaps);
}

static void unbind(struct rng *rng)
{
	shell("tc qdisc del dev sm1 root");
	sleep_ms(rng_below(rng, 1000));
	shell("tc qdisc replace dev sm1 root stackmap");
	count(C_qdisc_changes);
}

static void other_qdisc(struct rng *rng)
{
	shell("tc qdisc replace dev sm1 root pfifo limit 10");
	sleep_ms(rng_below(rng, 1000));
	shell("tc qdisc replace dev sm1 root stackmap");
	count(C_qdisc_changes);
}

static void bind_again(struct rng *rng)
{
	(void)rng;
	shell("tc qdisc del dev sm1 root; tc qdisc add dev sm1 root stackmap");
	count(C_qdisc_changes);
}

static void queue_length(struct rng *rng)
{
	char command[64];

	snprintf(command, sizeof(command), "ip link set sm1 txqueuelen %u",
		 rng_below(rng, 4) ? 1000 : rng_below(rng, 10));
	shell(command);
	count(C_qdisc_changes);
}

static void delete_nic(struct rng *rng)
{
	shell("ip link del sm1");
	sleep_ms(rng_below(rng, 500));
	shell("set -e\n" NIC1_UP);
	count(C_nic_deletions);
}

/* An operator's commands: they must not disturb the ports, nor be disturbed. */
static void look(struct rng *rng)
{
	(void)rng;
	shell("(ss -tinmoe; tc -s qdisc show; ip -s link; cat /proc/net/dev) >/dev/null");
}

void network_run(void)
{
	static void (*const happenings[])(struct rng *) = {
		flap, flap, flap_peer, unbind, other_qdisc, bind_again, queue_length, delete_nic,
		look, look,
	};
	struct rng rng = rng_make(shared->seed, 3, 0, 0xfffe);

	setpriority(PRIO_PROCESS, 0, -10);	/* or it would wait for the hostile ones most of the time */
	while (!stopping()) {
		sleep_ms(200 + rng_below(&rng, 2000));
		happenings[rng_below(&rng, ARRAY_SIZE(happenings))](&rng);
	}
	_exit(0);
}
