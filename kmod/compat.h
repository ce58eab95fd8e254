/* SPDX-License-Identifier: GPL-2.0 */
/* What differs between the kernels this module builds for: Debian's 6.1 and 6.12. */
#ifndef _SM_COMPAT_H
#define _SM_COMPAT_H

#include <linux/mm.h>
#include <linux/net.h>
#include <linux/skbuff.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
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
static inline ssize_t sm_refuse_sendpage(struct socket *sock, struct page *page, int offset,
					 size_t size, int flags)
{
	return -EBUSY;
}

static inline void sm_ops_refuse_sendpage(struct proto_ops *ops)
{
	ops->sendpage = sm_refuse_sendpage;
}
#else
static inline void sm_ops_refuse_sendpage(struct proto_ops *ops)
{
}
#endif

#endif /* _SM_COMPAT_H */
