/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Echo servers without an interpreter, on epoll and on rings.  Each serves in the thread that calls
 * it until its process is ended, and returns -errno only if it cannot go on.  This file is also
 * read by cffi.
 */

/* With @busy_usecs, epoll_wait() polls the NIC itself, for so long before it sleeps. */
int echo_on_epoll(int listener, int busy_usecs);

struct smr_port;

/* Open a port for as many servers as it has rings.  Returns NULL with errno set. */
struct smr_port *echo_port(const char *device, const char *nic, unsigned int rings);
/* The server of one of its rings. */
int echo_on_ring(int listener, const struct smr_port *port, unsigned int ring);
