// SPDX-License-Identifier: GPL-2.0
/* Bugs on purpose, one for each load: what finds bugs must find these. */
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

static char *bug;
module_param(bug, charp, 0400);

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spin);

static void use_after_free(void)
{
	char *object = kmalloc(64, GFP_KERNEL);
	char *alias = object;

	OPTIMIZER_HIDE_VAR(alias);	/* the compiler would notice too */
	kfree(object);
	WRITE_ONCE(*alias, 1);
}

static void keep_a_page(void)
{
	(void)alloc_page(GFP_KERNEL);
}

static void lose_objects(void)
{
	int i;

	for (i = 0; i < 10; i++)
		(void)kmalloc(1000, GFP_KERNEL);
}

static void lock_in_two_orders(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void sleep_under_a_spinlock(void)
{
	spin_lock(&spin);
	mutex_lock(&first);
	mutex_unlock(&first);
	spin_unlock(&spin);
}

static void shift_too_far(void)
{
	int by = 40;

	OPTIMIZER_HIDE_VAR(by);
	WRITE_ONCE(by, 1 << by);
}

static void nothing(struct timer_list *timer)
{
}

static void free_a_running_timer(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	timer_setup(timer, nothing, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
}

static void delete_from_a_list_twice(void)
{
	static LIST_HEAD(list);
	static struct list_head entry;

	list_add(&entry, &list);
	list_del(&entry);
	list_del(&entry);
}

static void take_a_reference_from_zero(void)
{
	static refcount_t users = REFCOUNT_INIT(1);

	if (refcount_dec_and_test(&users))
		refcount_inc(&users);
}

static void put_a_nic_twice(void)
{
	struct net_device *dev = init_net.loopback_dev;
	netdevice_tracker tracker;

	netdev_hold(dev, &tracker, GFP_KERNEL);
	netdev_put(dev, &tracker);
	netdev_put(dev, &tracker);
	__dev_hold(dev);	/* found by then; the machine is to end in order */
}

static unsigned long counted;

static int count_without_a_lock(void *unused)
{
	int i;

	for (i = 0; i < 10 * 1000 * 1000 && !kthread_should_stop(); i++) {
		counted++;
		barrier();
		if (i % 1000 == 0)
			cond_resched();
	}
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

static void race_with_a_thread(void)
{
	struct task_struct *thread = kthread_run(count_without_a_lock, NULL, "planted");
	unsigned long end = jiffies + 10 * HZ;

	if (IS_ERR(thread))
		return;
	while (time_before(jiffies, end)) {
		counted++;
		cond_resched();
	}
	kthread_stop(thread);
}

static const struct {
	const char *name;
	void (*make)(void);
} bugs[] = {
	{ "use_after_free", use_after_free },
	{ "keep_a_page", keep_a_page },
	{ "lose_objects", lose_objects },
	{ "lock_in_two_orders", lock_in_two_orders },
	{ "sleep_under_a_spinlock", sleep_under_a_spinlock },
	{ "shift_too_far", shift_too_far },
	{ "free_a_running_timer", free_a_running_timer },
	{ "delete_from_a_list_twice", delete_from_a_list_twice },
	{ "take_a_reference_from_zero", take_a_reference_from_zero },
	{ "put_a_nic_twice", put_a_nic_twice },
	{ "race_with_a_thread", race_with_a_thread },
};

static int __init planted_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(bugs); i++) {
		if (!strcmp(bug, bugs[i].name)) {
			bugs[i].make();
			return 0;
		}
	}
	return -EINVAL;
}

static void __exit planted_exit(void)
{
}

module_init(planted_init);
module_exit(planted_exit);
MODULE_DESCRIPTION("Bugs on purpose");
MODULE_LICENSE("GPL");
