#define _GNU_SOURCE
#include "truth.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_PAGES 48	  /* reported for one process */
#define MAX_MAPPING_PAGES 8 /* of them in one mapping */

/* slurp reads a file of /proc, whose size is not known before. */
char *slurp(const char *path, size_t *n)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t cap = 4096, len = 0;
	ssize_t r;
	char *p;
	if (fd < 0)
		return NULL;
	p = malloc(cap + 1);
	while ((r = read(fd, p + len, cap - len)) > 0) {
		len += r;
		if (len == cap)
			p = realloc(p, (cap *= 2) + 1);
	}
	close(fd);
	if (r < 0) {
		free(p);
		return NULL;
	}
	p[len] = 0;
	if (n)
		*n = len;
	return p;
}

void json_bytes(FILE *out, const char *p, size_t n)
{
	putc('"', out);
	for (size_t i = 0; i < n; i++) {
		unsigned char c = p[i];
		if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
			fprintf(out, "\\u%04x", c);
		else
			putc(c, out);
	}
	putc('"', out);
}

void json_string(FILE *out, const char *key, const char *value)
{
	fprintf(out, ",\"%s\":", key);
	json_bytes(out, value, strlen(value));
}

static void json_file(FILE *out, const char *key, const char *path)
{
	size_t n;
	char *p = slurp(path, &n);
	if (!p)
		return;
	if (n && p[n - 1] == '\n')
		n--;
	fprintf(out, ",\"%s\":", key);
	json_bytes(out, p, n);
	free(p);
}

static void json_link(FILE *out, const char *key, const char *path)
{
	char buf[8192];
	ssize_t n = readlink(path, buf, sizeof buf);
	if (n < 0)
		return;
	fprintf(out, ",\"%s\":", key);
	json_bytes(out, buf, n);
}

static void report_system(FILE *out)
{
	struct timespec real, boot;
	char host[256] = "";
	clock_gettime(CLOCK_REALTIME, &real);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	gethostname(host, sizeof host - 1);
	char *stat = slurp("/proc/stat", NULL);
	char *b = stat ? strstr(stat, "btime ") : NULL;
	fprintf(out, "{\"kind\":\"system\",\"btime\":%ld,\"clk_tck\":%ld,\"realtime_ns\":%lld,\"boottime_ns\":%lld,\"cpus\":%ld",
		b ? atol(b + 6) : 0, sysconf(_SC_CLK_TCK),
		real.tv_sec * 1000000000LL + real.tv_nsec, boot.tv_sec * 1000000000LL + boot.tv_nsec,
		sysconf(_SC_NPROCESSORS_ONLN));
	free(stat);
	json_file(out, "version", "/proc/version");
	json_file(out, "cmdline", "/proc/cmdline");
	json_file(out, "release", "/proc/sys/kernel/osrelease");
	json_string(out, "hostname", host);
	fprintf(out, "}\n");
}

static const char *const namespaces[] = { "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts" };

/* status_ids writes the four numbers of a line of /proc/PID/status. */
static void status_ids(FILE *out, const char *status, const char *line, const char *key)
{
	const char *p = strstr(status, line);
	unsigned v[4];
	if (p && sscanf(p + strlen(line), "%u %u %u %u", v, v + 1, v + 2, v + 3) == 4)
		fprintf(out, ",\"%s\":[%u,%u,%u,%u]", key, v[0], v[1], v[2], v[3]);
}

static void status_number(FILE *out, const char *status, const char *line, const char *key)
{
	const char *p = strstr(status, line);
	if (p)
		fprintf(out, ",\"%s\":%ld", key, atol(p + strlen(line)));
}

static const char *label_of(pid_t pid)
{
	for (int i = 0; i < nmade; i++)
		if (made[i].pid == pid)
			return made[i].label;
	return NULL;
}

/* report_threads writes the threads other than the leader. */
static void report_threads(FILE *out, pid_t pid)
{
	char path[300];
	struct dirent *e;
	int first = 1;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *d = opendir(path);
	if (!d)
		return;
	fprintf(out, ",\"threads\":[");
	while ((e = readdir(d))) {
		if (!isdigit(e->d_name[0]) || atoi(e->d_name) == pid)
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%s/comm", pid, e->d_name);
		fprintf(out, "%s{\"tid\":%s", first ? "" : ",", e->d_name);
		json_file(out, "comm", path);
		fprintf(out, "}");
		first = 0;
	}
	fprintf(out, "]");
	closedir(d);
}

static void report_process(FILE *out, pid_t pid)
{
	char path[64];
	size_t n;
#define PROC(name) (snprintf(path, sizeof path, "/proc/%d/" name, pid), path)
	char *stat = slurp(PROC("stat"), &n);
	char *p = stat ? strrchr(stat, ')') : NULL;
	char state;
	int ppid;
	unsigned long flags;
	unsigned long long start;
	if (!p || sscanf(p + 1, " %c %d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			 &state, &ppid, &flags, &start) != 4) {
		free(stat);
		return; /* it has ended since /proc was listed */
	}
	free(stat);
	fprintf(out, "{\"kind\":\"process\",\"pid\":%d,\"ppid\":%d,\"state\":\"%c\",\"start_ticks\":%llu,\"kthread\":%s",
		pid, ppid, state, start, flags & 0x00200000 /* PF_KTHREAD */ ? "true" : "false");
	if (label_of(pid))
		json_string(out, "label", label_of(pid));
	char *status = slurp(PROC("status"), NULL);
	if (status) {
		status_number(out, status, "\nTgid:", "tgid");
		status_ids(out, status, "\nUid:", "uids");
		status_ids(out, status, "\nGid:", "gids");
		char *ns = strstr(status, "\nNSpid:");
		if (ns) { /* the last number is the PID in its own namespace */
			char *end = strchr(ns + 1, '\n'), *last = end;
			while (last > ns && !isspace((unsigned char)last[-1]))
				last--;
			fprintf(out, ",\"ns_pid\":%d", atoi(last));
		}
		free(status);
	}
	json_file(out, "comm", PROC("comm"));
	json_link(out, "exe", PROC("exe"));
	json_link(out, "root", PROC("root"));
	json_file(out, "cgroup", PROC("cgroup"));
	char *args = slurp(PROC("cmdline"), &n);
	if (args) {
		fprintf(out, ",\"cmdline\":");
		json_bytes(out, args, n);
		free(args);
	}
	fprintf(out, ",\"namespaces\":{");
	int first = 1;
	for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
		char link[64];
		snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, namespaces[i]);
		ssize_t l = readlink(path, link, sizeof link - 1);
		if (l < 0)
			continue;
		link[l] = 0;
		char *num = strchr(link, '[');
		if (!num)
			continue;
		fprintf(out, "%s\"%s\":%ld", first ? "" : ",", namespaces[i], atol(num + 1));
		first = 0;
	}
	fprintf(out, "}");
	report_threads(out, pid);
	fprintf(out, "}\n");
}

static int by_number(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}

void report_processes(FILE *out)
{
	static pid_t pids[32768];
	int n = 0;
	struct dirent *e;
	DIR *d = opendir("/proc");
	if (!d)
		die("/proc");
	while ((e = readdir(d)))
		if (isdigit(e->d_name[0]) && n < (int)(sizeof pids / sizeof *pids))
			pids[n++] = atoi(e->d_name);
	closedir(d);
	qsort(pids, n, sizeof *pids, by_number);
	for (int i = 0; i < n; i++)
		report_process(out, pids[i]);
}

/* report_maps writes a process's mappings and where some of their pages are. */
static void report_maps(FILE *out, pid_t pid)
{
	char path[64];
	int pages = 0;
	char *maps = slurp(PROC("maps"), NULL);
	if (!maps)
		return;
	int pm = open(PROC("pagemap"), O_RDONLY | O_CLOEXEC);
	for (char *line = maps, *next; *line; line = next) {
		unsigned long start, end, off;
		unsigned major, minor;
		unsigned long inode;
		char perms[5];
		int at = 0, found = 0;
		next = strchr(line, '\n');
		*next++ = 0;
		if (sscanf(line, "%lx-%lx %4s %lx %x:%x %lu %n", &start, &end, perms, &off, &major, &minor, &inode, &at) < 7)
			continue;
		fprintf(out, "{\"kind\":\"mapping\",\"pid\":%d,\"start\":\"%#lx\",\"end\":\"%#lx\",\"perms\":\"%s\",\"offset\":\"%#lx\",\"inode\":%lu",
			pid, start, end, perms, off, inode);
		json_string(out, "path", line + at);
		fprintf(out, "}\n");
		if (pm < 0 || start >> 63)
			continue;
		/* The holes of a sparse mapping are read in runs. */
		static uint64_t run[4096];
		for (unsigned long va = start; va < end && found < MAX_MAPPING_PAGES && pages < MAX_PAGES;) {
			size_t want = (end - va) / 4096;
			if (want > 4096)
				want = 4096;
			ssize_t got = pread(pm, run, want * 8, va / 4096 * 8);
			if (got <= 0)
				break;
			for (int i = 0; i < got / 8 && found < MAX_MAPPING_PAGES && pages < MAX_PAGES; i++) {
				uint64_t pfn = run[i] & ((1ULL << 55) - 1);
				if (!(run[i] >> 63) || !pfn)
					continue;
				fprintf(out, "{\"kind\":\"page\",\"pid\":%d,\"virt\":\"%#lx\",\"phys\":\"%#lx\"}\n",
					pid, va + i * 4096UL, (unsigned long)pfn * 4096);
				found++, pages++;
			}
			va += got / 8 * 4096UL;
		}
	}
	if (pm >= 0)
		close(pm);
	free(maps);
}

void report_all(FILE *out)
{
	report_system(out);
	report_iomem(out);
	report_modules(out);
	report_symbols(out);
	report_processes(out);
	for (int i = 0; i < nmade; i++)
		report_maps(out, made[i].pid);
}
