// A process whose memory is swapped out: see swap_guest_test.go.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 300
#define AREA ((unsigned char *)0x150000000000UL)
#define FILED ((unsigned char *)0x160000000000UL)
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static void fill(unsigned char *p, unsigned i)
{
	uint32_t x = i * 2654435761u + 12345;
	switch (i % 6) {
	case 0: // text
		for (int j = 0; j < PAGE; j++)
			p[j] = "the quick brown fox "[(i + j + j / 97) % 20];
		break;
	case 1: // cannot be compressed
		for (int j = 0; j < PAGE; j++) {
			x = x * 1664525u + 1013904223u;
			p[j] = x >> 24;
		}
		break;
	case 2: // one word
		memset(p, 0x40 + i % 32, PAGE);
		break;
	case 3: // half of it
		for (int j = 0; j < PAGE / 2; j++) {
			x = x * 1664525u + 1013904223u;
			p[j] = x >> 24;
		}
		memset(p + PAGE / 2, 0, PAGE / 2);
		break;
	case 4:
		memset(p, 0, PAGE);
		break;
	default: // long runs and matches of many kinds
		memset(p, 0, PAGE);
		for (int j = 0; j < PAGE; j += 37 + i) {
			x = x * 1664525u + 1013904223u;
			memcpy(p + j, &x, j + 4 <= PAGE ? 4 : PAGE - j);
		}
	}
}

static void area(unsigned char *at, int flags, int fd)
{
	unsigned char *p = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (p != at)
		exit(2);
	madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE);
	for (unsigned i = 0; i < PAGES; i++)
		fill(p + i * PAGE, i);
	if (madvise(p, PAGES * PAGE, MADV_PAGEOUT))
		exit(3);
}

int main(void)
{
	area(AREA, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int m = memfd_create("swapped", 0);
	if (ftruncate(m, PAGES * PAGE) || dup2(m, 50) < 0)
		return 4;
	area(FILED, MAP_SHARED, m);
	printf("SWAP-PID %d\n", getpid());
	fflush(stdout);
	for (;;)
		pause();
}
