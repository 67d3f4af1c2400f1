#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct slot *slots;

void die(const char *what)
{
	fprintf(stderr, "truth: %s: %s\n", what, strerror(errno));
	_exit(1); /* of PID 1: a panic, which ends the guest and shows the console */
}

void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

void copy_self(const char *to)
{
	char buf[65536];
	ssize_t n;
	char *dir = strdup(to), *p;
	for (p = dir + 1; *p; p++)
		if (*p == '/') {
			*p = 0;
			mkdir(dir, 0755);
			*p = '/';
		}
	free(dir);
	int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	if (in < 0 || out < 0)
		die(to);
	while ((n = read(in, buf, sizeof buf)) > 0)
		if (write(out, buf, n) != n)
			die(to);
	close(in);
	close(out);
}

int main(void)
{
	const char *role = getenv("LAB_ROLE");

	if (role)
		role_main(role);
	write_file("/proc/sys/kernel/kptr_restrict", "0");
	slots = mmap(NULL, MAX_SLOTS * sizeof *slots, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		die("mmap slots");
	setvbuf(stdout, NULL, _IOFBF, 65536);
	printf("VANTAGE-TRUTH-BEGIN\n");
	make_all(stdout);
	report_all(stdout);
	printf("VANTAGE-TRUTH-END\n");
	char *ready = slurp("/lab/ready", NULL);
	printf("%s", ready ? ready : "VANTAGE-LAB-READY\n");
	fflush(stdout);
	command_loop(stdout);
}
