/* SPDX-License-Identifier: GPL-2.0 */
/* Differences between the kernels that this module builds for: Debian's 6.1 and 6.12. */
#ifndef _SM_COMPAT_H
#define _SM_COMPAT_H

#include <linux/mm.h>
#include <linux/net.h>
#include <linux/skbuff.h>
#include <linux/version.h>

#if !IS_ENABLED(CONFIG_TLS_DEVICE)
#error "stackmap needs a kernel with CONFIG_TLS_DEVICE=y: TCP tells of ACKs only there"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/*
 * Before 6.10 struct ubuf_info carried the completion itself; since then it points to a table of
 * operations.  The arguments are the same.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
#define SM_DEFINE_UBUF_OPS(name, fn) \
	static void (*const name)(struct sk_buff *, struct ubuf_info *, bool) = fn

static inline void sm_ubuf_set_ops(struct ubuf_info *ubuf,
				   void (*complete)(struct sk_buff *, struct ubuf_info *, bool))
{
	ubuf->callback = complete;
}

#define sm_ubuf_init(ubuf, ops) sm_ubuf_set_ops(ubuf, ops)
#else
#define SM_DEFINE_UBUF_OPS(name, fn) \
	static const struct ubuf_info_ops name = { .complete = fn }

#define sm_ubuf_init(ubuf, table) ((ubuf)->ops = &(table))
#endif

/* Before 6.5 sendfile() and splice() reached a socket through proto_ops.sendpage. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define SM_HAS_SENDPAGE
#endif

/* proto_ops.accept: its arguments after the two sockets, and passing them on */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
#define SM_ACCEPT_PARAMS	int flags, bool kern
#define sm_pass_accept(ops, sock, newsock) ((ops)->accept(sock, newsock, flags, kern))
#else
#define SM_ACCEPT_PARAMS	struct proto_accept_arg *arg
#define sm_pass_accept(ops, sock, newsock) ((ops)->accept(sock, newsock, arg))
#endif

#endif /* _SM_COMPAT_H */
