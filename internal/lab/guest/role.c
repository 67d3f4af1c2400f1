#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096UL

/* What a role says of what it made goes to the parent as facts. */
static FILE *facts;

static void fact_addr(const char *key, const void *p)
{
	fprintf(facts, ",\"%s\":\"%p\"", key, p);
}

static void fact_text(const char *key, const char *p)
{
	json_string(facts, key, p);
}

/* plain writes the secret that has this number. It is put together from parts so
 * that it is in the memory of the process that calls this and nowhere else:
 * not in this program's file, and so not in the guest's page cache. */
static void plain(char *to, const char *name, int number)
{
	static const unsigned char prefix[] = { 'V' ^ 0x5a, 'A' ^ 0x5a, 'N' ^ 0x5a, 'T' ^ 0x5a, 'A' ^ 0x5a, 'G' ^ 0x5a,
						'E' ^ 0x5a, '-' ^ 0x5a, 'S' ^ 0x5a, 'E' ^ 0x5a, 'C' ^ 0x5a, 'R' ^ 0x5a,
						'E' ^ 0x5a, 'T' ^ 0x5a, '-' ^ 0x5a };
	volatile unsigned char key = 0x5a;
	size_t i = 0;
	for (; i < sizeof prefix; i++)
		to[i] = prefix[i] ^ key;
	while (*name)
		to[i++] = *name++;
	to[i++] = '-';
	to[i++] = '0' + number;
	to[i] = 0;
}

/* The fact names the secret without its prefix, or the guest's memory would
 * hold it elsewhere too (buffers of the serial line). */
static void fact_secret(const char *name, int number, const void *at)
{
	char key[64], value[64];
	snprintf(key, sizeof key, "%s_secret", name);
	snprintf(value, sizeof value, "%s-%d", name, number);
	fact_text(key, value);
	snprintf(key, sizeof key, "%s_secret_addr", name);
	fact_addr(key, at);
}

static char *map(size_t n, int prot, int flags, int fd, off_t off)
{
	char *p = mmap(NULL, n, prot, flags, fd, off);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static uint64_t pfn(const void *p)
{
	uint64_t e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &e, 8, (uintptr_t)p / PAGE * 8) != 8)
		die("pagemap");
	close(fd);
	return e & ((1ULL << 55) - 1);
}

/* crossing places a secret across the boundary of two pages that are not
 * neighbours in physical memory. */
static void crossing(void)
{
	int pages = 64;
	char *p = map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
	for (int i = 0; i < pages; i += 2) /* even pages first, odd pages later, downwards */
		p[i * PAGE] = 1;
	for (int i = pages - 1; i > 0; i -= 2)
		p[i * PAGE] = 1;
	for (int i = 0; i + 1 < pages; i++) {
		if (pfn(p + i * PAGE) + 1 == pfn(p + (i + 1) * PAGE))
			continue;
		char *at = p + (i + 1) * PAGE - 10;
		plain(at, "crossing", 1);
		fact_secret("crossing", 1, at);
		return;
	}
	die("all pages are neighbours");
}

static void mappings(void)
{
	size_t gib2 = 2UL << 30;
	char *p = map(gib2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	fact_addr("sparse_addr", p);
	madvise(p, gib2, MADV_NOHUGEPAGE);
	plain(p + 5 * PAGE, "sparse", 1);
	fact_secret("sparse", 1, p + 5 * PAGE);
	plain(p + gib2 - PAGE, "sparse_end", 2);
	fact_secret("sparse_end", 2, p + gib2 - PAGE);

	/* A region of 4 MiB holds one aligned run of 2 MiB for a huge page. */
	p = map(4UL << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(p, 4UL << 20, MADV_HUGEPAGE);
	char *huge = (char *)(((uintptr_t)p + (2UL << 20) - 1) & ~((2UL << 20) - 1));
	plain(huge + 3 * PAGE + 100, "huge", 3);
	fact_secret("huge", 3, huge + 3 * PAGE + 100);

	p = map(2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fact_addr("none_addr", p);
	p = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	plain(p, "protected", 4);
	if (mprotect(p, 2 * PAGE, PROT_NONE))
		die("mprotect");
	fact_secret("protected", 4, p);

	p = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	plain(p, "rwx", 5);
	fact_secret("rwx", 5, p);

	int fd = memfd_create("lab-memfd", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 3 * PAGE))
		die("memfd");
	p = map(3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	plain(p + PAGE, "memfd", 6);
	fact_secret("memfd", 6, p + PAGE);

	fd = open("/mnt/data.bin", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || ftruncate(fd, 4 * PAGE))
		die("/mnt/data.bin");
	p = map(3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE);
	plain(p + 8, "file", 7);
	fact_secret("file", 7, p + 8);

	/* A path that would break a terminal, and a reader of lines. */
	fd = open("/mnt/odd \033[31m\nname", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || ftruncate(fd, PAGE))
		die("odd name");
	fact_addr("odd_name_addr", map(PAGE, PROT_READ, MAP_PRIVATE, fd, 0));

	p = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	plain(p, "shared", 8);
	fact_secret("shared", 8, p);

	p = malloc(100); /* the heap */
	plain(p, "heap", 9);
	fact_secret("heap", 9, p);
}

static void *thread(void *name)
{
	prctl(PR_SET_NAME, name);
	__atomic_add_fetch((int *)slots, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return NULL;
}

static void threads(void)
{
	static const char *const names[] = { "worker-one", "worker-two", "\033]0;evil\007" };
	int count = 0;
	slots = (struct slot *)&count; /* the threads count themselves here */
	for (size_t i = 0; i < 3; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, thread, (void *)names[i]))
			die("thread");
	}
	while (__atomic_load_n(&count, __ATOMIC_SEQ_CST) != 3)
		usleep(1000);
}

/* act does what the slot of this process says: see command.c. */
static void act(int sig)
{
	(void)sig;
	for (int i = 0; slots && i < MAX_SLOTS; i++) {
		struct slot *s = &slots[i];
		if (s->pid != getpid() || s->done)
			continue;
		if (!strcmp(s->op, "comm"))
			prctl(PR_SET_NAME, s->arg);
		if (!strcmp(s->op, "secret")) {
			char *p = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			plain(p, s->arg, 0);
		}
		if (!strcmp(s->op, "exec")) {
			char *name = strrchr(s->arg, '/');
			char *argv[] = { name ? name + 1 : s->arg, NULL };
			char *envp[] = { "LAB_ROLE=plain", NULL };
			sigset_t none;
			sigemptyset(&none);
			sigprocmask(SIG_SETMASK, &none, NULL);
			execve(s->arg, argv, envp);
		}
		s->done = 1;
		return;
	}
}

void idle(struct slot *ready)
{
	signal(SIGUSR1, act);
	if (ready)
		ready->done = 1;
	for (;;)
		pause();
}

void role_main(const char *role)
{
	char *fd = getenv("LAB_FD");
	facts = fd ? fdopen(atoi(fd), "w") : fopen("/dev/null", "w");
	char text[64];

	signal(SIGINT, SIG_IGN);
	if (!strcmp(role, "mappings"))
		mappings();
	else if (!strcmp(role, "crossing"))
		crossing();
	else if (!strcmp(role, "threads"))
		threads();
	else if (!strcmp(role, "oddcomm"))
		prctl(PR_SET_NAME, "\033[2J\xc3\xa9\xff\n\"<b>");
	else if (!strcmp(role, "title")) {
		/* As daemons do: write over the arguments, in place. */
		extern char *program_invocation_name;
		memset(program_invocation_name, 0, strlen(program_invocation_name));
		strcpy(program_invocation_name, "postgres: writer process");
	} else if (!strcmp(role, "deadleader"))
		threads();
	snprintf(text, sizeof text, "%s", role);
	fact_text("role", text);
	fclose(facts); /* the parent reads to the end: this role is ready */
	if (!strcmp(role, "deadleader"))
		pthread_exit(NULL); /* the leader ends, its threads run on */
	for (;;)
		pause();
}
