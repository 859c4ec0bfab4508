// SPDX-License-Identifier: GPL-2.0
/*
 * Three races for `vmdebug hunt`. /proc/race takes words:
 *
 *	add	adds 1 to a counter, and may be interrupted between reading and writing it: an update is lost
 *	inc	adds 1 to it with preemption disabled: only another CPU can come between reading and writing
 *	get	allocates a buffer, unless there is one
 *	put	frees it, and may be interrupted between looking at it and forgetting it: it is freed twice
 *
 * Reading /proc/race gives the counter.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

static unsigned long counter;
static void *buffer;

static void add_one(void)
{
	unsigned long value = READ_ONCE(counter);

	cond_resched();
	WRITE_ONCE(counter, value + 1);
}

static noinline void store_counter(unsigned long value)
{
	WRITE_ONCE(counter, value);
}

static void increment(void)
{
	preempt_disable();
	store_counter(READ_ONCE(counter) + 1);
	preempt_enable();
}

static void put_buffer(void)
{
	void *old = READ_ONCE(buffer);

	if (!old)
		return;
	cond_resched();
	kfree(old);
	WRITE_ONCE(buffer, NULL);
}

static ssize_t race_write(struct file *file, const char __user *data, size_t size, loff_t *offset)
{
	char word[4] = "";

	if (copy_from_user(word, data, min(size, sizeof(word) - 1)))
		return -EFAULT;
	if (!strcmp(word, "add"))
		add_one();
	else if (!strcmp(word, "inc"))
		increment();
	else if (!strcmp(word, "get") && !buffer)
		buffer = kmalloc(64, GFP_KERNEL);
	else if (!strcmp(word, "put"))
		put_buffer();
	return size;
}

static int race_show(struct seq_file *file, void *data)
{
	seq_printf(file, "%lu\n", counter);
	return 0;
}

static int race_open(struct inode *inode, struct file *file)
{
	return single_open(file, race_show, NULL);
}

static const struct proc_ops race_ops = {
	.proc_open = race_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = race_write,
};

static int __init race_init(void)
{
	return proc_create("race", 0600, NULL, &race_ops) ? 0 : -ENOMEM;
}

static void __exit race_exit(void)
{
	remove_proc_entry("race", NULL);
	kfree(buffer);
}

module_init(race_init);
module_exit(race_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Races for vmdebug hunt");
