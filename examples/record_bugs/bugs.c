// SPDX-License-Identifier: GPL-2.0
/*
 * Two bugs whose cause is long past when they show, for recordings. /proc/bugs takes words:
 *
 *	open	allocates a session
 *	close	frees it, and forgets to forget it
 *	use	calls its handler: after `close`, it uses memory that is free
 *
 *	get	takes a reference to an object
 *	put	gives it back
 *	peek	takes one, and does not give it back if it fails, as it always does
 *	end	warns if there is a reference left
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

struct session {
	void (*handler)(struct session *session);
	unsigned long calls;
};

static struct kmem_cache *bugs_cache;
static struct session *bugs_session;
static struct {
	refcount_t users;
} bugs_object;

static void count_call(struct session *session)
{
	session->calls++;
}

static noinline int open_session(void)
{
	bugs_session = kmem_cache_zalloc(bugs_cache, GFP_KERNEL);
	if (!bugs_session)
		return -ENOMEM;
	bugs_session->handler = count_call;
	return 0;
}

static noinline int close_session(void)
{
	kmem_cache_free(bugs_cache, bugs_session);
	return 0;
}

static noinline int use_session(void)
{
	bugs_session->handler(bugs_session);
	return 0;
}

static noinline int get_object(void)
{
	refcount_inc(&bugs_object.users);
	return 0;
}

static noinline int put_object(void)
{
	return refcount_dec_and_test(&bugs_object.users) ? -EBADF : 0;
}

static noinline int peek_object(void)
{
	refcount_inc(&bugs_object.users);
	return -EAGAIN;
}

static noinline int end_object(void)
{
	WARN(refcount_read(&bugs_object.users) != 1, "a reference to bugs_object is left");
	return 0;
}

static const struct {
	const char *name;
	int (*run)(void);
} words[] = {
	{ "open", open_session },
	{ "close", close_session },
	{ "use", use_session },
	{ "get", get_object },
	{ "put", put_object },
	{ "peek", peek_object },
	{ "end", end_object },
};

static ssize_t bugs_write(struct file *file, const char __user *data, size_t size, loff_t *offset)
{
	char word[8] = "";
	int i, error;

	if (copy_from_user(word, data, min(size, sizeof(word) - 1)))
		return -EFAULT;
	for (i = 0; i < ARRAY_SIZE(words); i++) {
		if (!sysfs_streq(word, words[i].name))
			continue;
		error = words[i].run();
		return error ? error : size;
	}
	return -EINVAL;
}

static const struct proc_ops bugs_ops = {
	.proc_write = bugs_write,
};

static int __init bugs_init(void)
{
	refcount_set(&bugs_object.users, 1);
	bugs_cache = kmem_cache_create("bugs", sizeof(struct session), 0, 0, NULL);
	if (!bugs_cache)
		return -ENOMEM;
	if (proc_create("bugs", 0200, NULL, &bugs_ops))
		return 0;
	kmem_cache_destroy(bugs_cache);
	return -ENOMEM;
}

static void __exit bugs_exit(void)
{
	remove_proc_entry("bugs", NULL);
	kmem_cache_destroy(bugs_cache);
}

module_init(bugs_init);
module_exit(bugs_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Bugs for vmdebug's recordings");
