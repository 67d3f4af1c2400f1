#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * One command a line: "ID COMMAND [ARGUMENT]…". The answer stands between
 * "VANTAGE-LAB-BEGIN ID" and "VANTAGE-LAB-END ID STATUS". The commands:
 *
 *	fork N            make N idle processes; prints their PIDs
 *	spawn PATH        copy this program to PATH and start it; prints the PID
 *	exec PID PATH     let a process made by fork execute a copy at PATH
 *	comm PID NAME     let it change its name
 *	secret PID NAME   let it map a page with VANTAGE-SECRET-NAME-0 at its beginning
 *	exit PID          end a process, and reap it
 *	zombie PID        end a process, and do not reap it
 *	churn on|off      a process that makes and ends others without a pause
 *	truth             print everything again
 *	ps                print the processes again
 *	quit              power off
 */

static int ask(pid_t pid, const char *op, const char *arg)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		struct slot *s = &slots[i];
		if (s->pid != pid)
			continue;
		snprintf(s->op, sizeof s->op, "%s", op);
		snprintf(s->arg, sizeof s->arg, "%s", arg);
		s->done = 0;
		if (kill(pid, SIGUSR1))
			return 1;
		if (!strcmp(op, "exec")) {
			/* Done when its memory is that of the new program. */
			char path[64], exe[256];
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			for (int t = 0; t < 20000; t++) {
				ssize_t n = readlink(path, exe, sizeof exe - 1);
				if (n > 0 && (exe[n] = 0, !strcmp(exe, arg)))
					return 0;
				usleep(500);
			}
			return 1;
		}
		for (int t = 0; t < 20000; t++) {
			if (s->done)
				return 0;
			usleep(500);
		}
		return 1;
	}
	return 2; /* not one that fork made */
}

static void end(pid_t pid, int reap)
{
	siginfo_t info;
	kill(pid, SIGKILL);
	if (waitid(P_PID, pid, &info, WEXITED | (reap ? 0 : WNOWAIT)))
		return;
	for (int i = 0; i < MAX_SLOTS; i++)
		if (slots[i].pid == pid)
			slots[i].pid = 0;
}

static int do_fork(FILE *out, int n)
{
	for (int i = 0, k = 0; i < n; i++) {
		while (k < MAX_SLOTS && slots[k].pid)
			k++;
		if (k == MAX_SLOTS)
			return 1;
		struct slot *s = &slots[k];
		s->done = 0;
		s->pid = make_idle(NULL, "forked", s);
		/* It must have its name, and be ready for signals, when we answer. */
		while (!s->done)
			usleep(200);
		fprintf(out, "%s%d", i ? " " : "", s->pid);
	}
	fprintf(out, "\n");
	return 0;
}

static void churn(int on)
{
	static pid_t churner;
	if (churner) {
		/* What it made becomes ours when it ends. */
		kill(-churner, SIGKILL);
		while (waitpid(-churner, NULL, 0) > 0)
			;
		churner = 0;
	}
	if (!on)
		return;
	fflush(NULL);
	churner = fork();
	if (churner) {
		setpgid(churner, churner);
		return;
	}
	setpgid(0, 0);
	prctl(PR_SET_NAME, "churner");
	pid_t ring[16] = { 0 };
	for (unsigned i = 0;; i++) {
		pid_t *p = &ring[i % 16];
		if (*p) {
			kill(*p, SIGKILL);
			waitpid(*p, NULL, 0);
		}
		*p = fork();
		if (*p == 0) {
			prctl(PR_SET_NAME, "churned");
			for (;;)
				pause();
		}
	}
}

static int command(FILE *out, char *line)
{
	char *save, *op = strtok_r(line, " \n", &save), *a = strtok_r(NULL, " \n", &save), *b = strtok_r(NULL, "\n", &save);
	if (!op)
		return 2;
	if (!strcmp(op, "fork") && a)
		return do_fork(out, atoi(a));
	if (!strcmp(op, "spawn") && a) {
		copy_self(a);
		char *name = strrchr(a, '/');
		fprintf(out, "%d\n", make_idle(a, name ? name + 1 : a, NULL));
		return 0;
	}
	if (!strcmp(op, "exec") && a && b) {
		copy_self(b);
		return ask(atoi(a), op, b);
	}
	if ((!strcmp(op, "comm") || !strcmp(op, "secret")) && a && b)
		return ask(atoi(a), op, b);
	if (!strcmp(op, "exit") && a)
		return end(atoi(a), 1), 0;
	if (!strcmp(op, "zombie") && a)
		return end(atoi(a), 0), 0;
	if (!strcmp(op, "churn") && a)
		return churn(!strcmp(a, "on")), 0;
	if (!strcmp(op, "truth"))
		return report_all(out), 0;
	if (!strcmp(op, "ps"))
		return report_processes(out), 0;
	if (!strcmp(op, "quit"))
		reboot(RB_POWER_OFF);
	return 2;
}

void command_loop(FILE *out)
{
	char line[4096];
	for (;;) {
		char *rest;
		if (!fgets(line, sizeof line, stdin)) {
			clearerr(stdin);
			usleep(10000);
			continue;
		}
		rest = strchr(line, ' ');
		if (!rest)
			continue;
		*rest++ = 0;
		fprintf(out, "VANTAGE-LAB-BEGIN %s\n", line);
		int status = command(out, rest);
		fprintf(out, "\nVANTAGE-LAB-END %s %d\n", line, status);
		fflush(out);
	}
}
