// SPDX-License-Identifier: GPL-2.0
/* stackmap.ko: the kernel's TCP with netmap rings as data path. */
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "core/file.h"
#include "core/port.h"
#include "netlink.h"
#include "nic/qdisc.h"
#include "tcp/attach.h"
#include "tcp/direct_rx.h"
#include "tcp/port.h"
#include "tcp/sockops.h"
#include "tcp/ulp.h"
#include "uapi/stackmap.h"

static struct miscdevice sm_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "stackmap",
	.fops	= &sm_file_fops,
	.mode	= 0666,
};

static int __init sm_init(void)
{
	int err;

	BUILD_BUG_ON(sizeof(struct sm_slot) != 16);
	BUILD_BUG_ON(offsetof(struct sm_ring, slot) != 256);
	BUILD_BUG_ON(sizeof(struct sm_req_header) != 88);
	BUILD_BUG_ON(sizeof(struct sm_req_register) != 56);
	BUILD_BUG_ON(offsetof(struct sm_if, ring_ofs) != 56);
	BUILD_BUG_ON(sizeof(struct sm_state) != 128);
	/* With larger pages slot->len and the offset in slot->ptr would wrap: see SM_BUF_SIZE. */
	BUILD_BUG_ON(SM_BUF_SIZE > U16_MAX);
	/* SM_STATE_OFFSET does not fit into a page offset of 32 bits. */
	BUILD_BUG_ON(!IS_ENABLED(CONFIG_64BIT));
	BUILD_BUG_ON(struct_size_t(struct sm_if, ring_ofs, 2 * (SM_MAX_RINGS + 1)) > PAGE_SIZE);

	err = sm_attach_init();
	if (err)
		return err;
	sm_free_wq = alloc_workqueue("stackmap_free", WQ_UNBOUND, 0);
	if (!sm_free_wq)
		return -ENOMEM;
	err = sm_qdisc_register(sm_attach_plug_of, sm_direct_receive);
	if (err)
		goto err_free_wq;
	err = sm_netlink_register();
	if (err)
		goto err_qdisc;
	err = sm_ulp_register();
	if (err)
		goto err_netlink;
	err = sm_port_kind_register(&sm_tcp_port_ops);
	if (err)
		goto err_ulp;
	err = misc_register(&sm_device);
	if (err)
		goto err_kind;
	return 0;

err_kind:
	sm_port_kind_unregister(&sm_tcp_port_ops);
err_ulp:
	sm_ulp_unregister();
err_netlink:
	sm_netlink_unregister();
err_qdisc:
	sm_qdisc_unregister();
err_free_wq:
	destroy_workqueue(sm_free_wq);
	return err;
}

/* No port and no qdisc is left: each holds the module. */
static void __exit sm_exit(void)
{
	misc_deregister(&sm_device);
	sm_port_kind_unregister(&sm_tcp_port_ops);
	sm_ulp_unregister();
	sm_netlink_unregister();
	sm_qdisc_unregister();
	destroy_workqueue(sm_free_wq);
	/*
	 * The context that put the last reference, an skb's completion for instance, may not have
	 * returned from our code yet.  It does not sleep there; nor do readers of sm_ulp_ops, of
	 * which some (ss) are no RCU readers.
	 */
	rcu_barrier();
	synchronize_rcu();
	synchronize_rcu_tasks();
	sm_ops_exit();
}

module_init(sm_init);
module_exit(sm_exit);

MODULE_DESCRIPTION("StackMap: kernel TCP with netmap rings as data path");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
MODULE_ALIAS("sch_stackmap");
MODULE_ALIAS("net-sch-stackmap");
