// Opens a file of every kind in two mount namespaces, maps memory of every kind,
// and prints what the kernel says of it in /proc: what tests compare with.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define PAGE 4096UL

static void die(const char *what)
{
	printf("FAILED %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static int must(int r, const char *what)
{
	if (r < 0)
		die(what);
	return r;
}

static int make(const char *path, int flags, size_t size)
{
	int fd = must(open(path, flags | O_CREAT, 0640), path);
	static char text[PAGE];
	memset(text, 'a', sizeof text);
	for (size_t done = 0; done < size;) {
		size_t n = size - done < sizeof text ? size - done : sizeof text;
		must(write(fd, text, n), path);
		done += n;
	}
	return fd;
}

// what every child opens, in its own mount namespace.
static void open_all(const char *dir, int other)
{
	char p[512];
	int fd, two[2];
	must(mkdir(dir, 0755), dir);
	must(chdir(dir), dir);

	fd = make("plain", O_RDWR, 10000);
	must(lseek(fd, 1234, SEEK_SET), "lseek");
	must(fchown(fd, 1001, 1002), "fchown");
	fd = make("append", O_WRONLY | O_APPEND | O_CLOEXEC, 77);
	must(dup(fd), "dup");
	make("gone", O_RDWR, 3);
	must(unlink("gone"), "unlink");
	make("linked", O_RDWR, 3);
	must(link("linked", "still there"), "link");
	must(unlink("linked"), "unlink");
	make("named (deleted)", O_RDWR, 5);
	make("\x1b[31mred\n\xff\xfe", O_RDWR, 5);
	make("a name that is far too long to lie in the directory entry itself", O_RDWR, 5);
	must(open(".", O_TMPFILE | O_RDWR, 0600), "O_TMPFILE");
	must(mkdir("sub", 0700), "mkdir");
	must(open("sub", O_RDONLY | O_DIRECTORY), "sub");
	must(mkdir("subgone", 0700), "mkdir");
	must(open("subgone", O_RDONLY | O_DIRECTORY), "subgone");
	must(rmdir("subgone"), "rmdir");
	must(symlink("plain", "link"), "symlink");
	must(open("link", O_PATH | O_NOFOLLOW), "link");
	must(open("plain", O_PATH), "O_PATH");
	must(mkfifo("fifo", 0622), "mkfifo");
	must(open("fifo", O_RDWR | O_NONBLOCK), "fifo");
	must(open("/", O_RDONLY), "/");
	must(open("/proc/self/status", O_RDONLY), "/proc");
	must(open("/sys/kernel/profiling", O_RDONLY), "/sys");

	// A directory mounted onto another, a file onto a file, and one of its
	// own file system.
	must(mkdir("bound", 0755), "mkdir");
	must(mount("sub", "bound", NULL, MS_BIND, NULL), "bind");
	make("bound/below", O_RDWR, 1);
	close(make("onto", O_RDWR, 0));
	close(make("from", O_RDWR, 9));
	must(mount("from", "onto", NULL, MS_BIND, NULL), "bind a file");
	must(open("onto", O_RDONLY), "onto");
	must(unlink("from"), "unlink");
	must(mkdir("tmpfs", 0755), "mkdir");
	must(mount("none", "tmpfs", "tmpfs", 0, NULL), "tmpfs");
	make("tmpfs/in it", O_RDWR, 100);
	must(mkdir("lazy", 0755), "mkdir");
	must(mount("none", "lazy", "tmpfs", 0, NULL), "tmpfs");
	make("lazy/left", O_RDWR, 1);
	must(umount2("lazy", MNT_DETACH), "umount");

	must(pipe2(two, O_NONBLOCK), "pipe");
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, two), "socketpair");
	must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	must(eventfd(7, EFD_NONBLOCK), "eventfd");
	fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll");
	struct epoll_event ev = {.events = EPOLLIN};
	must(epoll_ctl(fd, EPOLL_CTL_ADD, two[0], &ev), "epoll_ctl");
	fd = must(inotify_init(), "inotify");
	must(inotify_add_watch(fd, "sub", IN_OPEN), "inotify_add_watch");
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	must(signalfd(-1, &set, 0), "signalfd");
	must(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd");
	must(memfd_create("a memfd", MFD_CLOEXEC), "memfd");
	must(syscall(SYS_pidfd_open, getpid(), 0), "pidfd");
	must(open("/proc/self/ns/mnt", O_RDONLY), "ns");
	must(open("/proc/self/ns/pid_for_children", O_RDONLY), "ns");
	must(open("/proc/self/ns/net", O_RDONLY), "ns");
	// What not every kernel has.
	fanotify_init(FAN_CLASS_NOTIF, O_RDONLY);
	syscall(SYS_userfaultfd, O_CLOEXEC);
	union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
	syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map);
	struct perf_event_attr perf = {.type = PERF_TYPE_SOFTWARE, .size = sizeof perf, .config = PERF_COUNT_SW_DUMMY};
	syscall(SYS_perf_event_open, &perf, 0, -1, -1, 0);
	char params[256] = {0};
	syscall(425 /* io_uring_setup */, 1, params);

	must(open("/dev/zero", O_RDWR), "/dev/zero");
	open("/dev/loop0", O_RDONLY | O_NONBLOCK);
	fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	if (fd >= 0) {
		unlockpt(fd);
		if (ptsname_r(fd, p, sizeof p) == 0)
			open(p, O_RDWR | O_NOCTTY);
	}
	must(dup2(0, 700), "dup2");
	must(fcntl(0, F_DUPFD_CLOEXEC, 1000), "F_DUPFD_CLOEXEC");
	if (other >= 0) // a file of another mount namespace
		must(dup(other), "dup");
}

static pid_t child(int ns, int other)
{
	int ready[2];
	must(pipe(ready), "pipe");
	pid_t pid = must(fork(), "fork");
	if (pid == 0) {
		close(ready[0]);
		int null = must(open("/dev/null", O_RDWR), "/dev/null");
		dup2(null, 0), dup2(null, 2);
		prctl(PR_SET_NAME, ns ? "files-in-ns" : "files-here");
		if (ns) {
			must(unshare(CLONE_NEWNS), "unshare");
			must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
			must(mount("none", "/mnt", "tmpfs", 0, NULL), "tmpfs");
		}
		open_all(ns ? "/mnt/files" : "/tmp/files", other);
		fflush(stdout);
		dup2(0, 1);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	char c;
	while (read(ready[0], &c, 1) > 0)
		;
	close(ready[0]);
	return pid;
}

// The program again, from a file that is deleted while it runs, and from one
// that never had a name.
static pid_t run_from(int fd)
{
	int ready[2];
	must(pipe2(ready, O_CLOEXEC), "pipe");
	pid_t pid = must(fork(), "fork");
	if (pid == 0) {
		char *argv[] = {"files-sleep", "sleep", NULL}, *envp[] = {NULL};
		int null = must(open("/dev/null", O_RDWR), "/dev/null");
		dup2(null, 0), dup2(null, 1), dup2(null, 2);
		close(null);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		execve(path, argv, envp);
		_exit(errno);
	}
	close(ready[1]);
	char c;
	while (read(ready[0], &c, 1) > 0)
		;
	close(ready[0]);
	return pid;
}

// What the parent is told of a mapping that the kernel does not count.
static struct copies {
	void *start;
	int modified;
} *copies;
static int ncopies;

static void *map(size_t pages, int prot, int flags, int fd)
{
	void *p = mmap(NULL, pages * PAGE, prot, flags, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	// Something else below it, so that no neighbour is merged with it.
	mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p;
}

static void touch(void *p, int from, int pages, int write)
{
	for (int i = from; i < from + pages; i++) {
		volatile char *c = (char *)p + i * PAGE;
		if (write)
			*c = 'x';
		else
			(void)*c;
	}
}

static void told(void *p, int modified)
{
	copies[ncopies++] = (struct copies){p, modified};
}

static void map_all(const char *lib)
{
	int fd = make(lib, O_RDWR, 16 * PAGE), ro = must(open(lib, O_RDONLY), lib);
	char *p = map(16, PROT_READ | PROT_EXEC, MAP_PRIVATE, ro);
	touch(p, 0, 8, 0);
	must(mprotect(p, 16 * PAGE, PROT_READ | PROT_WRITE), "mprotect");
	p[3 * PAGE + 17] = 'x'; // code that is not the file's
	p[5 * PAGE] = 'a';	// written to, but still what the file has
	must(mprotect(p, 16 * PAGE, PROT_READ | PROT_EXEC), "mprotect");
	told(p, 1);
	p = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE, ro);
	touch(p, 0, 9, 0);
	touch(p, 2, 4, 1);
	told(p, 4);
	p = map(16, PROT_READ, MAP_SHARED, ro);
	touch(p, 0, 16, 0);
	told(p, 0);
	close(fd), close(ro);

	fd = make("/tmp/deleted map", O_RDWR, 8 * PAGE);
	unlink("/tmp/deleted map");
	p = map(8, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	touch(p, 0, 5, 1);
	close(fd);
	fd = must(memfd_create("mapped", 0), "memfd");
	must(ftruncate(fd, 16 * PAGE), "ftruncate");
	p = map(16, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	touch(p, 0, 5, 1);
	p = map(16, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE, fd);
	touch(p, 0, 12, 0);
	touch(p, 6, 2, 1);
	told(p, 2);
	close(fd);

	p = map(8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	touch(p, 0, 3, 1);
	p = map(64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	touch(p, 0, 10, 1);
	touch(p, 20, 5, 0); // the zero page
	p = map(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	touch(p, 0, 8, 1);
	must(mprotect(p, 8 * PAGE, PROT_NONE), "mprotect");
	p = map(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	must(madvise(p, 8 * PAGE, MADV_DONTDUMP), "DONTDUMP");
	must(madvise(p, 8 * PAGE, MADV_WIPEONFORK), "WIPEONFORK");
	must(madvise(p, 8 * PAGE, MADV_DONTFORK), "DONTFORK");
	must(madvise(p, 8 * PAGE, MADV_SEQUENTIAL), "SEQUENTIAL");
	must(mlock(p, 8 * PAGE), "mlock");
	fd = must(open("/dev/zero", O_RDWR), "/dev/zero");
	p = map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	touch(p, 0, 2, 1);
	told(p, 0);
	close(fd);

	// Huge pages, written to and only read.
	for (int write = 0; write < 2; write++) {
		char *q = map(1536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		madvise(q, 1536 * PAGE, MADV_HUGEPAGE);
		touch(q, 0, 1024, write);
	}
	p = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p != MAP_FAILED)
		touch(p, 0, 1, 1);

	// What is out: pages of no file, copies of a file's, and shared ones.
	p = map(32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	touch(p, 0, 20, 1);
	must(madvise(p, 32 * PAGE, MADV_PAGEOUT), "PAGEOUT");
	ro = must(open(lib, O_RDONLY), lib);
	p = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE, ro);
	touch(p, 0, 4, 1);
	must(madvise(p, 16 * PAGE, MADV_PAGEOUT), "PAGEOUT");
	told(p, 4);
	close(ro);
	p = map(16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	touch(p, 0, 11, 1);
	must(madvise(p, 16 * PAGE, MADV_PAGEOUT), "PAGEOUT");
}

static pid_t mapper(void)
{
	int ready[2];
	must(pipe(ready), "pipe");
	pid_t pid = must(fork(), "fork");
	if (pid == 0) {
		close(ready[0]);
		prctl(PR_SET_NAME, "mapper");
		map_all("/tmp/lib");
		fflush(stdout);
		int null = must(open("/dev/null", O_RDWR), "/dev/null");
		dup2(null, 0), dup2(null, 1), dup2(null, 2);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	char c;
	while (read(ready[0], &c, 1) > 0)
		;
	close(ready[0]);
	return pid;
}

// Swap on a file, for pages to go to.
static void swap_on(void)
{
	int fd = make("/tmp/swap", O_RDWR, 4096 * PAGE);
	unsigned head[3] = {1, 4095, 0};
	must(pwrite(fd, head, sizeof head, 1024), "swap");
	must(pwrite(fd, "SWAPSPACE2", 10, PAGE - 10), "swap");
	int loop = must(open("/dev/loop1", O_RDWR), "loop1");
	must(ioctl(loop, 0x4c00 /* LOOP_SET_FD */, fd), "LOOP_SET_FD");
	must(swapon("/dev/loop1", 0), "swapon");
	close(loop), close(fd);
}

static void print_maps(pid_t pid)
{
	char path[64], line[4096];
	snprintf(path, sizeof path, "/proc/%d/smaps", pid);
	FILE *f = fopen(path, "r");
	if (!f)
		die(path);
	while (fgets(line, sizeof line, f))
		printf("MAP %d %s", pid, line);
	fclose(f);
}

static void copy_self(int to)
{
	static char buf[1 << 16];
	int fd = must(open("/proc/self/exe", O_RDONLY), "exe");
	ssize_t n;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		must(write(to, buf, n), "copy");
	close(fd);
}

static void hex(const char *s, ssize_t n)
{
	for (ssize_t i = 0; i < n; i++)
		printf("%02x", (unsigned char)s[i]);
	putchar(' ');
}

static void print_file(pid_t pid, const char *role, int fd, const char *path)
{
	char link[4096], info[128], line[256];
	ssize_t n = readlink(path, link, sizeof link);
	if (n < 0)
		return;
	struct stat st;
	must(stat(path, &st), path);
	printf("FILE %d %s %d ", pid, role, fd);
	hex(link, n);
	unsigned long flags = 0, mnt = 0;
	long long pos = 0;
	if (fd >= 0) {
		snprintf(info, sizeof info, "/proc/%d/fdinfo/%d", pid, fd);
		FILE *f = fopen(info, "r");
		if (!f)
			die(info);
		while (fgets(line, sizeof line, f)) {
			sscanf(line, "flags: %lo", &flags);
			sscanf(line, "pos: %lld", &pos);
			sscanf(line, "mnt_id: %lu", &mnt);
		}
		fclose(f);
	}
	printf("%lo %lld %lu %u:%u %u:%u %lu %u %u %o %lld %ld.%09ld %ld.%09ld %ld.%09ld\n", flags, pos, st.st_ino,
	       major(st.st_dev), minor(st.st_dev), major(st.st_rdev), minor(st.st_rdev), (unsigned long)st.st_nlink,
	       st.st_uid, st.st_gid, st.st_mode, (long long)st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
	       st.st_ctim.tv_sec, st.st_ctim.tv_nsec, st.st_atim.tv_sec, st.st_atim.tv_nsec);
}

static void print_files(pid_t pid)
{
	char path[64], link[64];
	snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
	ssize_t n = readlink(path, link, sizeof link - 1);
	link[n < 0 ? 0 : n] = 0;
	printf("PROC %d %s\n", pid, link);
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	print_file(pid, "exe", -1, path);
	for (int fd = 0; fd < 1024; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		print_file(pid, "fd", fd, path);
	}
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "sleep"))
		for (;;)
			pause();
	struct rlimit lim = {2000, 4000};
	setrlimit(RLIMIT_NOFILE, &lim);
	copies = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int sys = open("/proc/sys/vm/nr_hugepages", O_WRONLY);
	if (sys >= 0) {
		if (write(sys, "4", 1) < 0)
			printf("no huge pages\n");
		close(sys);
	}
	swap_on();
	pid_t pids[8];
	int n = 0;
	pids[n++] = child(0, -1);
	int other = must(open("/tmp/files/plain", O_RDWR), "plain");
	pids[n++] = child(1, other);
	close(other);
	int fd = must(open("/tmp/gone-exe", O_RDWR | O_CREAT, 0755), "gone-exe");
	copy_self(fd);
	close(fd);
	fd = must(open("/tmp/gone-exe", O_RDONLY), "gone-exe");
	pids[n++] = run_from(fd);
	must(unlink("/tmp/gone-exe"), "unlink");
	close(fd);
	fd = must(memfd_create("hidden", 0), "memfd");
	copy_self(fd);
	char self[64];
	snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
	int ro = must(open(self, O_RDONLY), self);
	close(fd);
	pids[n++] = run_from(ro);
	close(ro);
	pids[n++] = mapper();
	for (int i = 0; i < n; i++)
		print_files(pids[i]);
	for (int i = 0; i < n; i++)
		print_maps(pids[i]);
	for (int i = 0; copies[i].start; i++)
		printf("COPY %d %lx %d\n", pids[n - 1], (unsigned long)copies[i].start, copies[i].modified);
	printf("END\n");
	fflush(stdout);
	_exit(0);
}
