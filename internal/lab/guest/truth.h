/*
 * The truth program: runs in a guest of the lab, makes processes and mappings
 * that it knows all about, and says over the serial line what there is, one
 * JSON object a line. Bytes outside printable ASCII are written \u00XX, one
 * escape a byte, whatever encoding they are of.
 */
#ifndef TRUTH_H
#define TRUTH_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define MAX_MADE 128

/* A process that this program made, in order of its making. */
struct made {
	const char *label;
	pid_t pid;
};
extern struct made made[MAX_MADE];
extern int nmade;

/* What a process of ours is asked to do: see role.c. One for each, shared. */
struct slot {
	volatile pid_t pid;
	volatile int done;
	char op[16];
	char arg[240];
};
#define MAX_SLOTS 4096
extern struct slot *slots;

/* report.c: what there is */
void report_all(FILE *out);
void report_processes(FILE *out);
void json_bytes(FILE *out, const char *p, size_t n);
void json_string(FILE *out, const char *key, const char *value);
char *slurp(const char *path, size_t *n);

/* kernel.c: what the kernel is */
void report_modules(FILE *out);
void report_symbols(FILE *out);
void report_iomem(FILE *out);

/* make.c: what this program makes */
void make_all(FILE *out);
pid_t make_idle(const char *path, const char *comm, struct slot *ready);
void note_made(const char *label, pid_t pid);

/* role.c: what a made process does */
void role_main(const char *role) __attribute__((noreturn));
void idle(struct slot *ready) __attribute__((noreturn));

/* command.c: what the host asks for */
void command_loop(FILE *out) __attribute__((noreturn));

void die(const char *what) __attribute__((noreturn));
void write_file(const char *path, const char *text);
void copy_self(const char *to);

#endif
