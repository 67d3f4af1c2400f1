#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

struct made made[MAX_MADE];
int nmade;

void note_made(const char *label, pid_t pid)
{
	if (nmade < MAX_MADE)
		made[nmade++] = (struct made){ strdup(label), pid };
}

/* How one process is made. What is zero is left as it is. */
struct spec {
	const char *label;
	const char *exe; /* in its own root */
	const char *role;
	char **argv; /* { label } when NULL */
	const char *cgroup;
	const char *root; /* for chroot */
	int ns;		  /* CLONE_NEW… */
	int unlink;	  /* remove exe once it runs */
	uid_t uids[3];	  /* real, effective, saved */
	gid_t gids[3];
};

static char **strings(const char *a, const char *b, const char *c, const char *d)
{
	const char *in[] = { a, b, c, d };
	char **out = calloc(5, sizeof *out);
	for (int i = 0; i < 4 && in[i]; i++)
		out[i] = strdup(in[i]);
	return out;
}

static void join_cgroup(const char *cgroup)
{
	char path[512], *p;
	snprintf(path, sizeof path, "/sys/fs/cgroup%s/", cgroup);
	for (p = path + strlen("/sys/fs/cgroup/"); *p; p++)
		if (*p == '/') {
			*p = 0;
			mkdir(path, 0755);
			*p = '/';
		}
	strcat(path, "cgroup.procs");
	write_file(path, "0");
}

/* child becomes what s says; it does not return. */
static void child(const struct spec *s, int report)
{
	char fd[16], role[64];
	char *argv1[] = { (char *)s->label, NULL };
	snprintf(fd, sizeof fd, "LAB_FD=%d", report);
	snprintf(role, sizeof role, "LAB_ROLE=%s", s->role);
	char *envp[] = { role, fd, NULL };

	if (s->cgroup)
		join_cgroup(s->cgroup);
	if (s->ns & ~(CLONE_NEWPID | CLONE_NEWTIME) && unshare(s->ns & ~(CLONE_NEWPID | CLONE_NEWTIME)))
		die(s->label);
	if (s->ns & CLONE_NEWUTS)
		sethostname(s->label, strlen(s->label));
	if (s->root && (chroot(s->root) || chdir("/")))
		die(s->root);
	if (s->gids[0] && (setgroups(0, NULL) || setresgid(s->gids[0], s->gids[1], s->gids[2])))
		die("setresgid");
	if (s->uids[0] && setresuid(s->uids[0], s->uids[1], s->uids[2]))
		die("setresuid");
	execve(s->exe, s->argv ? s->argv : argv1, envp);
	die(s->exe);
}

/* make starts one process, waits until its role is ready and writes what the
 * role says of itself. */
static pid_t make(FILE *out, const struct spec *s)
{
	int p[2];
	char outer[512], buf[4096];
	size_t n = 0;
	ssize_t r;
	pid_t pid;

	snprintf(outer, sizeof outer, "%s%s", s->root ? s->root : "", s->exe);
	if (access(outer, X_OK))
		copy_self(outer);
	if (pipe2(p, O_CLOEXEC))
		die("pipe");
	fflush(NULL);
	pid = syscall(SYS_clone, (s->ns & CLONE_NEWPID) | SIGCHLD, 0, 0, 0, 0);
	if (pid < 0)
		die("clone");
	if (pid == 0) {
		fcntl(p[1], F_SETFD, 0);
		if (s->ns & CLONE_NEWTIME) {
			/* It holds for children only. The parent of ours ends, so
			 * that PID 1 becomes theirs. */
			if (unshare(CLONE_NEWTIME))
				die("unshare time");
			if (fork())
				_exit(0);
			dprintf(p[1], "%d\n", getpid());
		}
		child(s, p[1]);
	}
	close(p[1]);
	while ((r = read(p[0], buf + n, sizeof buf - 1 - n)) > 0)
		n += r;
	buf[n] = 0;
	close(p[0]);
	char *said = buf;
	if (s->ns & CLONE_NEWTIME) {
		waitpid(pid, NULL, 0);
		pid = strtol(buf, &said, 10);
		said++;
	}
	if (s->unlink)
		unlink(outer);
	note_made(s->label, pid);
	fprintf(out, "{\"kind\":\"made\",\"pid\":%d", pid);
	json_string(out, "label", s->label);
	fprintf(out, "%s}\n", said);
	return pid;
}

#define ID1 "4f1d0c7ae2b89356714fd0c2a9e85b3360718fa4d25ce9b7013486fa9dc2e57b"
#define ID2 "a07c5e1949d2f86b30e1c7a45b92d8f6134e0a7cbd5829f3610e47a8c5b29d30"
#define ID3 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define ID4 "f9e8d7c6b5a4938271605f4e3d2c1b0af9e8d7c6b5a4938271605f4e3d2c1b0a"
#define POD "0b7c3a52-94de-4f10-8a6b-5d2e71c0f839"
#define POD_ "0b7c3a52_94de_4f10_8a6b_5d2e71c0f839"

#define CONTAINER (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP)

static char **long_args(void)
{
	static char *argv[203];
	argv[0] = "longargs";
	for (int i = 1; i <= 200; i++) {
		char a[128];
		snprintf(a, sizeof a, "--option-number-%03d=%0*d", i, 40 + i % 60, i);
		argv[i] = i % 50 == 0 ? "" : strdup(a);
	}
	argv[201] = "";
	return argv;
}

static void make_zombie(void)
{
	siginfo_t info;
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_NAME, "zombie");
		_exit(3);
	}
	waitid(P_PID, pid, &info, WEXITED | WNOWAIT); /* left unreaped */
	note_made("zombie", pid);
}

pid_t make_idle(const char *path, const char *comm, struct slot *ready)
{
	pid_t pid;
	fflush(NULL);
	pid = fork();
	if (pid)
		return pid;
	if (path) {
		char *argv[] = { strdup(comm), NULL }, *envp[] = { "LAB_ROLE=plain", NULL };
		execve(path, argv, envp);
		die(path);
	}
	if (comm)
		prctl(PR_SET_NAME, comm);
	idle(ready);
}

void make_all(FILE *out)
{
	mkdir("/mnt", 0755);
	if (mount("tmpfs", "/mnt", "tmpfs", 0, NULL))
		die("mount /mnt");
	mkdir("/jail", 0755);
	struct spec all[] = {
		{ .label = "plain", .exe = "/usr/bin/plain", .argv = strings("plain", "--one", "two three", NULL) },
		{ .label = "user", .exe = "/usr/sbin/nginx", .argv = strings("nginx: worker process", NULL, NULL, NULL),
		  .uids = { 33, 33, 33 }, .gids = { 33, 33, 33 } },
		{ .label = "setuid", .exe = "/usr/bin/setuid", .uids = { 1000, 1001, 1002 }, .gids = { 2000, 2001, 2002 } },
		{ .label = "deleted", .exe = "/tmp/deleted-exe", .unlink = 1 },
		{ .label = "inmount", .exe = "/mnt/inner/inmount" },
		{ .label = "chroot", .exe = "/bin/inchroot", .root = "/jail" },
		{ .label = "longargs", .exe = "/usr/bin/longargs", .argv = long_args() },
		{ .label = "longname", .exe = "/usr/bin/a-name-longer-than-fifteen-bytes" },
		{ .label = "oddargs", .exe = "/usr/bin/oddargs",
		  .argv = strings("\033[31mred\033[0m", "", "caf\xc3\xa9 \xff\xfe", "line\nbreak\ttab\"quote\\") },
		{ .label = "emptyarg", .exe = "/usr/bin/emptyarg", .argv = strings("", NULL, NULL, NULL) },
		{ .label = "oddexe", .exe = "/usr/bin/od d\033[7m\303\251\n", .argv = strings("oddexe", NULL, NULL, NULL) },
		{ .label = "oddcomm", .exe = "/usr/bin/oddcomm", .role = "oddcomm" },
		{ .label = "title", .exe = "/usr/bin/title", .role = "title",
		  .argv = strings("postgres-with-room-for-a-title", "-D", "/var/lib/postgresql", NULL) },
		{ .label = "threads", .exe = "/usr/bin/threads", .role = "threads" },
		{ .label = "deadleader", .exe = "/usr/bin/deadleader", .role = "deadleader" },
		{ .label = "mappings", .exe = "/usr/bin/mappings", .role = "mappings" },
		{ .label = "crossing", .exe = "/usr/bin/crossing", .role = "crossing" },

		{ .label = "ns-uts", .exe = "/usr/bin/ns", .ns = CLONE_NEWUTS },
		{ .label = "ns-mnt", .exe = "/usr/bin/ns", .ns = CLONE_NEWNS },
		{ .label = "ns-ipc", .exe = "/usr/bin/ns", .ns = CLONE_NEWIPC },
		{ .label = "ns-net", .exe = "/usr/bin/ns", .ns = CLONE_NEWNET },
		{ .label = "ns-pid", .exe = "/usr/bin/ns", .ns = CLONE_NEWPID },
		{ .label = "ns-user", .exe = "/usr/bin/ns", .ns = CLONE_NEWUSER },
		{ .label = "ns-time", .exe = "/usr/bin/ns", .ns = CLONE_NEWTIME },
		{ .label = "ns-cgroup", .exe = "/usr/bin/ns", .ns = CLONE_NEWCGROUP, .cgroup = "/ns-cgroup" },

		{ .label = "docker", .exe = "/usr/bin/docked", .ns = CONTAINER,
		  .cgroup = "/system.slice/docker-" ID1 ".scope" },
		{ .label = "docker-cgroupfs", .exe = "/usr/bin/docked", .cgroup = "/docker/" ID2 },
		{ .label = "kubepods", .exe = "/usr/bin/kubed", .cgroup = "/kubepods/burstable/pod" POD "/" ID3 },
		{ .label = "cri-containerd", .exe = "/usr/bin/kubed", .ns = CONTAINER,
		  .cgroup = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" POD_ ".slice/cri-containerd-" ID4 ".scope" },
		{ .label = "cri-o", .exe = "/usr/bin/kubed",
		  .cgroup = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" POD_ ".slice/crio-" ID2 ".scope" },
		{ .label = "podman", .exe = "/usr/bin/poddy", .cgroup = "/machine.slice/libpod-" ID3 ".scope/container" },
		{ .label = "containerd", .exe = "/usr/bin/ctr-made", .cgroup = "/default/redis-server" },
		{ .label = "lxc", .exe = "/usr/bin/lxc-made", .cgroup = "/lxc.payload.web01" },
		{ .label = "service", .exe = "/usr/sbin/cron", .cgroup = "/system.slice/cron.service" },
		{ .label = "session", .exe = "/usr/bin/login-shell", .cgroup = "/user.slice/user-1000.slice/session-3.scope",
		  .uids = { 1000, 1000, 1000 }, .gids = { 1000, 1000, 1000 } },
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if (!all[i].role)
			all[i].role = "plain";
		make(out, &all[i]);
	}
	make_zombie();
}
