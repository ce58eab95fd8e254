/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Echo servers without an interpreter, on epoll and on rings.  Each serves until its process is
 * ended, and returns -errno only if it cannot go on.  This file is also read by cffi.
 */

/* With @busy_usecs, epoll_wait() polls the NIC itself, for so long before it sleeps. */
int echo_on_epoll(int listener, int busy_usecs);
int echo_on_rings(int listener, const char *device, const char *nic);
