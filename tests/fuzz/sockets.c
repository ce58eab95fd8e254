// SPDX-License-Identifier: GPL-2.0
/* Operations of a hostile thread on sockets, attached or not, and on other descriptors. */
#include "hostile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/kcm.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP	262
#endif

/* -- connections ------------------------------------------------------------------------------ */

static int dial(struct rng *rng, int protocol)
{
	struct sockaddr_storage address;
	bool v6 = rng_one_in(rng, 3), mapped = !v6 && rng_one_in(rng, 4);
	socklen_t size = network_address(&address, rng_below(rng, NICS), true, v6, PEERS_PORT);
	int fd = socket(v6 || mapped ? AF_INET6 : AF_INET,
			SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);

	if (mapped) {				/* ::ffff:10.7x.0.2 */
		struct sockaddr_in in = *(struct sockaddr_in *)&address;
		struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = in.sin_port };

		memset(in6.sin6_addr.s6_addr + 10, 0xff, 2);
		memcpy(in6.sin6_addr.s6_addr + 12, &in.sin_addr, 4);
		memcpy(&address, &in6, sizeof(in6));
		size = sizeof(in6);
	}
	connect(fd, (void *)&address, size);
	count(C_connects);
	return fd;
}

static void attach_new(struct rng *rng, struct port *port, int fd)
{
	struct sm_attach attach = { .fd = fd, .ring = SM_RING_ANY };

	if (ioctl(atomic_load(&port->fd), SMIOC_ATTACH, &attach)) {
		count(C_attaches_refused);
	} else {
		count(C_attaches);
		atomic_store(&port->id[rng_below(rng, IDS)], attach.id);
	}
}

void connect_port(struct rng *rng, struct port *port)
{
	int fd = dial(rng, 0);
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };

	if (rng_below(rng, 4) && poll(&pfd, 1, 10) == 1)
		attach_new(rng, port, fd);
	keep_fd(rng, fd);
}

static void make_connection(struct rng *rng)
{
	connect_port(rng, pick_port(rng));
}

static void accept_connection(struct rng *rng)
{
	int fd = accept4(self.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	count(C_accepts);
	if (rng_below(rng, 4))
		attach_new(rng, pick_port(rng), fd);
	keep_fd(rng, fd);
}

/* -- things that are not to be attached ------------------------------------------------------- */

static int make_udp(struct rng *rng)
{
	struct sockaddr_storage address;
	socklen_t size = network_address(&address, rng_below(rng, NICS), true, false, PEERS_PORT);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	connect(fd, (void *)&address, size);
	return fd;
}

static int make_listener(struct rng *rng)
{
	int fd = socket(rng_one_in(rng, 2) ? AF_INET : AF_INET6,
			SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	listen(fd, 4);
	return fd;
}

static int make_unconnected(struct rng *rng)
{
	return socket(rng_one_in(rng, 2) ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int make_unix(struct rng *rng)
{
	int pair[2];

	if (socketpair(AF_UNIX, rng_one_in(rng, 2) ? SOCK_STREAM : SOCK_DGRAM, 0, pair))
		return -1;
	keep_fd(rng, pair[0]);
	return pair[1];
}

static int make_mptcp(struct rng *rng)
{
	return dial(rng, IPPROTO_MPTCP);
}

static int make_kcm(struct rng *rng)
{
	return socket(AF_KCM, rng_one_in(rng, 2) ? SOCK_DGRAM : SOCK_SEQPACKET, KCMPROTO_CONNECTED);
}

static int make_event(struct rng *rng)
{
	return eventfd(rng_below(rng, 2), EFD_CLOEXEC | EFD_NONBLOCK);
}

static int make_device(struct rng *rng)
{
	static const char * const names[] = { "/dev/null", "/dev/zero", "/dev/stackmap", "/" };

	return open(names[rng_below(rng, ARRAY_SIZE(names))], O_RDONLY | O_CLOEXEC);
}

static int make_packet(struct rng *rng)
{
	(void)rng;
	return socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
}

static int make_duplicate(struct rng *rng)
{
	return fcntl(pick_fd(rng), F_DUPFD_CLOEXEC, 0);
}

static void make_other(struct rng *rng)
{
	static int (*const makers[])(struct rng *) = {
		make_udp, make_listener, make_unconnected, make_unix, make_mptcp, make_kcm,
		make_event, make_device, make_packet, make_duplicate, make_duplicate,
	};

	keep_fd(rng, makers[rng_below(rng, ARRAY_SIZE(makers))](rng));
}

/* -- calls on any of them --------------------------------------------------------------------- */

#define LEVELS(X)								\
	X(SOL_SOCKET, SO_KEEPALIVE) X(SOL_SOCKET, SO_SNDBUF) X(SOL_SOCKET, SO_RCVBUF)	\
	X(SOL_SOCKET, SO_RCVLOWAT) X(SOL_SOCKET, SO_BUSY_POLL) X(SOL_SOCKET, SO_ZEROCOPY) \
	X(SOL_SOCKET, SO_PRIORITY) X(SOL_SOCKET, SO_MARK) X(SOL_SOCKET, SO_OOBINLINE)	\
	X(SOL_SOCKET, SO_MAX_PACING_RATE) X(SOL_SOCKET, SO_TIMESTAMPING)	\
	X(SOL_SOCKET, SO_INCOMING_CPU) X(SOL_SOCKET, SO_SNDTIMEO) X(SOL_SOCKET, SO_DONTROUTE) \
	X(IPPROTO_TCP, TCP_NODELAY) X(IPPROTO_TCP, TCP_CORK) X(IPPROTO_TCP, TCP_MAXSEG)	\
	X(IPPROTO_TCP, TCP_KEEPIDLE) X(IPPROTO_TCP, TCP_LINGER2) X(IPPROTO_TCP, TCP_QUICKACK) \
	X(IPPROTO_TCP, TCP_WINDOW_CLAMP) X(IPPROTO_TCP, TCP_USER_TIMEOUT)	\
	X(IPPROTO_TCP, TCP_NOTSENT_LOWAT) X(IPPROTO_TCP, TCP_REPAIR)		\
	X(IPPROTO_TCP, TCP_REPAIR_QUEUE) X(IPPROTO_TCP, TCP_QUEUE_SEQ) X(IPPROTO_TCP, TCP_INQ) \
	X(IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE) X(IPPROTO_TCP, TCP_TX_DELAY)	\
	X(IPPROTO_TCP, TCP_FASTOPEN_CONNECT) X(IPPROTO_TCP, TCP_DEFER_ACCEPT)	\
	X(IPPROTO_TCP, TCP_INFO) X(IPPROTO_TCP, TCP_SAVE_SYN) X(IPPROTO_IP, IP_TOS)	\
	X(IPPROTO_IP, IP_RECVERR) X(IPPROTO_IP, IP_TRANSPARENT) X(IPPROTO_IPV6, IPV6_RECVERR) \
	X(IPPROTO_IPV6, IPV6_V6ONLY)

static const struct {
	int level, name;
} options[] = {
#define X(level, name) { level, name },
	LEVELS(X)
#undef X
};

static void set_option(struct rng *rng, int fd)
{
	size_t i = rng_below(rng, ARRAY_SIZE(options));
	uint32_t value[8] = { rng_one_in(rng, 2) ? rng_below(rng, 2) : rng_odd(rng) };

	setsockopt(fd, options[i].level, options[i].name, pick_pointer(rng, value, sizeof(int)),
		   rng_one_in(rng, 8) ? rng_below(rng, 33) : sizeof(int));
}

static void get_option(struct rng *rng, int fd)
{
	size_t i = rng_below(rng, ARRAY_SIZE(options));
	uint8_t value[512] = { 0 };
	socklen_t size = rng_below(rng, sizeof(value) + 1);

	getsockopt(fd, options[i].level, options[i].name, pick_pointer(rng, value, size), &size);
}

/* Receive past the rings, with what needs no recvmsg(). */
static void zero_copy_receive(struct rng *rng, int fd)
{
	struct port *port = pick_port(rng);
	static _Thread_local char copy[4096];
	struct {				/* libc's has no copy buffer yet */
		uint64_t address;
		uint32_t length, recv_skip_hint, inq;
		int32_t err;
		uint64_t copybuf_address;
		int32_t copybuf_len;
		uint32_t flags;
	} request = {
		.address = (uintptr_t)port->arena + rng_below(rng, 16) * 4096,
		.length = rng_below(rng, 5) * 4096,
		.copybuf_address = (uintptr_t)copy, .copybuf_len = sizeof(copy),
	};
	socklen_t size = sizeof(request);

	getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &request, &size);
}

/* Make an IPv4 socket of an IPv6 one; attached in the middle of it, perhaps. */
static void change_family(struct rng *rng, int fd)
{
	int family = AF_INET;
	int *late = rng_one_in(rng, 2) ? slow_copy(rng, &family, sizeof(family)) : NULL;

	setsockopt(fd, IPPROTO_IPV6, IPV6_ADDRFORM, late ?: &family, sizeof(family));
}

static void set_congestion_control(struct rng *rng, int fd)
{
	static const char * const names[] = { "reno", "cubic", "bbr", "dctcp", "none" };
	const char *name = names[rng_below(rng, ARRAY_SIZE(names))];

	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, strlen(name));
}

/* An upper protocol: kTLS, with keys or without. */
static void set_upper_protocol(struct rng *rng, int fd)
{
	static const char * const names[] = { "tls", "tls", "tls", "espintcp", "mptcp", "smc" };
	const char *name = names[rng_below(rng, ARRAY_SIZE(names))];
	const char *late = slow_copy(rng, name, strlen(name) + 1) ?: name;
	struct tls12_crypto_info_aes_gcm_128 keys = {
		.info = { TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128 },
	};

	/* Attached in the middle of it, perhaps: the name may come late. */
	setsockopt(fd, IPPROTO_TCP, TCP_ULP, rng_one_in(rng, 4) ? late : name, strlen(name) + 1);
	if (rng_one_in(rng, 2))
		setsockopt(fd, SOL_TLS, 1 + rng_below(rng, 2), &keys, sizeof(keys));
}

static void set_linger(struct rng *rng, int fd)
{
	struct linger linger = { rng_below(rng, 2), rng_below(rng, 2) };

	/* The kernel copies this with the socket locked. */
	setsockopt(fd, SOL_SOCKET, SO_LINGER, pick_pointer(rng, &linger, sizeof(linger)),
		   sizeof(linger));
}

static void shut(struct rng *rng, int fd)
{
	shutdown(fd, rng_below(rng, 4));
}

static void transmit(struct rng *rng, int fd)
{
	char data[1000] = { 0 };

	send(fd, data, rng_below(rng, sizeof(data)), MSG_DONTWAIT | MSG_NOSIGNAL |
	     MSG_OOB * rng_one_in(rng, 8) | MSG_ZEROCOPY * rng_one_in(rng, 4) |
	     MSG_MORE * rng_one_in(rng, 4));
}

static void receive(struct rng *rng, int fd)
{
	char data[1000];

	recv(fd, data, rng_below(rng, sizeof(data)), MSG_DONTWAIT |
	     MSG_PEEK * rng_one_in(rng, 4) | MSG_OOB * rng_one_in(rng, 8) |
	     MSG_ERRQUEUE * rng_one_in(rng, 8) | MSG_TRUNC * rng_one_in(rng, 8));
}

static void splice_through(struct rng *rng, int fd)
{
	int pipes[2];

	if (pipe2(pipes, O_NONBLOCK | O_CLOEXEC))
		return;
	splice(fd, NULL, pipes[1], NULL, 8192, SPLICE_F_NONBLOCK);
	splice(pipes[0], NULL, pick_fd(rng), NULL, 8192, SPLICE_F_NONBLOCK);
	close(pipes[0]);
	close(pipes[1]);
}

static void connect_again(struct rng *rng, int fd)
{
	struct sockaddr_storage address;
	socklen_t size = network_address(&address, 0, true, rng_one_in(rng, 2), PEERS_PORT);

	if (rng_one_in(rng, 2))
		address.ss_family = AF_UNSPEC;		/* disconnect */
	connect(fd, (void *)&address, size);
}

static void listen_on(struct rng *rng, int fd)
{
	listen(fd, rng_below(rng, 5));
}

static void ask(struct rng *rng, int fd)
{
	static const unsigned long commands[] = { FIONREAD, TIOCOUTQ, 0x8905 /* SIOCATMARK */ };
	struct pollfd pfd = { .fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP };
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);
	int value;

	ioctl(fd, commands[rng_below(rng, ARRAY_SIZE(commands))], &value);
	getpeername(fd, (void *)&address, &size);
	poll(&pfd, 1, 0);
}

/* Put it into a KCM multiplexor, or take it out. */
static void kcm(struct rng *rng, int fd)
{
	struct kcm_attach attach = { .fd = pick_fd(rng), .bpf_fd = -1 };

	ioctl(fd, rng_one_in(rng, 2) ? SIOCKCMATTACH : SIOCKCMUNATTACH, &attach);
}

/* As ss -K. */
static void destroy(struct rng *rng, int fd)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 request;
	} message = {
		.header = {
			.nlmsg_len = sizeof(message), .nlmsg_type = SOCK_DESTROY,
			.nlmsg_flags = NLM_F_REQUEST,
		},
		.request = { .sdiag_protocol = IPPROTO_TCP },
	};
	struct inet_diag_sockid *id = &message.request.id;
	struct sockaddr_storage address;
	socklen_t size = sizeof(uint64_t);
	uint64_t cookie;

	(void)rng;
	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size))
		return;
	memcpy(id->idiag_cookie, &cookie, sizeof(cookie));
	for (int remote = 0; remote < 2; remote++) {
		struct sockaddr_in *in = (void *)&address;
		struct sockaddr_in6 *in6 = (void *)&address;

		size = sizeof(address);
		if (remote ? getpeername(fd, (void *)&address, &size) :
			     getsockname(fd, (void *)&address, &size))
			return;
		message.request.sdiag_family = address.ss_family;
		*(remote ? &id->idiag_dport : &id->idiag_sport) = in->sin_port;
		if (address.ss_family == AF_INET)
			memcpy(remote ? id->idiag_dst : id->idiag_src, &in->sin_addr, 4);
		else
			memcpy(remote ? id->idiag_dst : id->idiag_src, &in6->sin6_addr, 16);
	}
	if (send(self.diag, &message, sizeof(message), MSG_DONTWAIT) == sizeof(message))
		count(C_destroys);
}

static void call_socket(struct rng *rng)
{
	static void (*const calls[])(struct rng *, int) = {
		set_option, set_option, set_option, get_option, zero_copy_receive, change_family,
		set_congestion_control, set_upper_protocol, set_linger, shut, transmit, receive,
		splice_through, connect_again, listen_on, ask, kcm, destroy,
	};

	calls[rng_below(rng, ARRAY_SIZE(calls))](rng, pick_fd(rng));
	count(C_socket_calls);
}

static void close_one(struct rng *rng)
{
	int fd = atomic_exchange(&self.fd[rng_below(rng, FDS)], -1);

	if (fd < 0)
		return;
	close(fd);
	count(C_closes);
}

/* -- between processes ------------------------------------------------------------------------ */

union control {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int))];
};

/* Give a port or a socket to whichever process takes it. */
static void pass(struct rng *rng)
{
	struct port *port = pick_port(rng);
	bool give_port = rng_one_in(rng, 4) && port->size;
	struct sm_req_register what = { };
	union control control = { };
	struct iovec iov = { &what, sizeof(what) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	int fd = give_port ? atomic_load(&port->fd) : pick_fd(rng);

	if (give_port) {
		what.nr_memsize = port->size;
		what.nr_tx_slots = port->ntx;
		what.nr_rx_slots = port->nrx;
		what.nr_tx_rings = port->npairs;
	}
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	if (sendmsg(shared->passing[0], &msg, MSG_DONTWAIT) > 0)
		count(C_fds_passed);
}

static void take(struct rng *rng)
{
	struct sm_req_register what;
	union control control;
	struct iovec iov = { &what, sizeof(what) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(shared->passing[1], &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof(what) ||
	    msg.msg_controllen < CMSG_LEN(sizeof(int)))
		return;
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	count(C_fds_taken);
	if (what.nr_memsize)
		port_adopt(pick_port(rng), fd, &what);
	else
		keep_fd(rng, fd);
}

static void dump(struct rng *rng)
{
	netlink_dump(rng);
}

const struct action socket_actions[] = {
	{ "make_connection", 6, make_connection },
	{ "accept_connection", 6, accept_connection },
	{ "make_other", 2, make_other },
	{ "call_socket", 12, call_socket },
	{ "close_one", 3, close_one },
	{ "pass", 1, pass },
	{ "take", 1, take },
	{ "dump", 1, dump },
};
const size_t socket_action_count = ARRAY_SIZE(socket_actions);
