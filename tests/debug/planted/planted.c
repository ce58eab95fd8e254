// SPDX-License-Identifier: GPL-2.0
/* Bugs on purpose, one for each load: what finds bugs must find these. */
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
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
