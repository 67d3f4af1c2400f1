// A process whose memory, files and registers are known: see extract_guest_test.go.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define AREA ((char *)0x100000000000UL)     // anonymous, half of it touched
#define NONE ((char *)0x110000000000UL)     // written, then PROT_NONE
#define VAST ((char *)0x120000000000UL)     // 1 GiB, one page touched
#define MAPPED ((char *)0x130000000000UL)   // a private mapping of a file
#define SHARED ((char *)0x140000000000UL)   // shared anonymous memory

volatile uint64_t known = 0x0123456789abcdefUL;

static void fill(char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (char)(seed + i * 31 + (i >> 12) * 7);
}

static char *area(char *at, size_t n, int flags, int fd)
{
	char *p = mmap(at, n, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (p != at)
		exit(2);
	return p;
}

// Waits in the kernel with registers of known values; the address behind the
// system call has a name of its own.
#define WAIT(label, r12v, r13v)                                              \
	__asm__ volatile("movq %0, %%r12\n movq %1, %%r13\n"                  \
			 "1: movl $34, %%eax\n syscall\n .globl " label "\n" label ":\n jmp 1b\n" \
			 :: "i"(r12v), "i"(r13v)                              \
			 : "rax", "rcx", "r11", "r12", "r13", "memory")

static void *other(void *arg)
{
	(void)arg;
	WAIT("other_waits", 0x22220000, 0x22221111);
	return NULL;
}

static void *spins(void *arg)
{
	(void)arg;
	while (known)
		known = known;
	return NULL;
}

static void __attribute__((noinline)) third(void)
{
	WAIT("main_waits", 0x11110000, 0x11112222);
}
static void __attribute__((noinline)) second(void) { third(); __asm__ volatile(""); }
static void __attribute__((noinline)) first(void) { second(); __asm__ volatile(""); }

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	fill(area(AREA, 64 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1), 32 * PAGE, 1);
	fill(area(NONE, 4 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1), 4 * PAGE, 2);
	mprotect(NONE, 4 * PAGE, PROT_NONE);
	area(VAST, 1UL << 30, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	fill(VAST + (500UL << 20), PAGE, 3);
	int fd = open(argv[1], O_RDONLY);
	if (fd < 0)
		return 3;
	area(MAPPED, 128 * PAGE, MAP_PRIVATE, fd);
	fill(MAPPED + 3 * PAGE, PAGE, 4); // one page of its own
	fill(area(SHARED, 16 * PAGE, MAP_SHARED | MAP_ANONYMOUS, -1), 9 * PAGE, 5);

	char *buf = malloc(300001);
	fill(buf, 300001, 6);
	int m = memfd_create("known memfd", 0);
	if (write(m, buf, 300001) != 300001 || dup2(m, 50) < 0)
		return 4;
	int d = open("/tmp/gone", O_RDWR | O_CREAT, 0600);
	if (write(d, buf, 100000) != 100000 || dup2(d, 51) < 0 || unlink("/tmp/gone"))
		return 5;
	pthread_t t;
	if (pthread_create(&t, NULL, other, NULL))
		return 6;
	if (argc > 2 && pthread_create(&t, NULL, spins, NULL))
		return 6;
	usleep(100000);
	printf("CORE-PID %d\n", getpid());
	fflush(stdout);
	first();
	return 0;
}
