/* What the guest says of its kernel: modules, symbols, where it lies. */
#include "truth.h"

#include <stdlib.h>
#include <string.h>

void report_modules(FILE *out)
{
	char *text = slurp("/proc/modules", NULL), *save;
	if (!text)
		return;
	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
		char name[64], users[1024], state[32];
		unsigned long size, base;
		int refs;
		if (sscanf(l, "%63s %lu %d %1023s %31s %lx", name, &size, &refs, users, state, &base) != 6)
			continue;
		fprintf(out, "{\"kind\":\"module\",\"name\":\"%s\",\"size\":%lu,\"refs\":%d,\"state\":\"%s\",\"base\":\"%#lx\"}\n",
			name, size, refs, state, base);
	}
	free(text);
}

static const char *const wanted[] = {
	"_text", "_stext", "_etext", "_end", "linux_banner", "init_task", "init_pid_ns", "init_top_pgt", "init_nsproxy",
	"init_uts_ns", "init_user_ns", "modules", "saved_command_line", "phys_base", "page_offset_base", "vmemmap_base",
	"vmalloc_base", "__start_BTF", "__stop_BTF", "kallsyms_num_syms", "kallsyms_names", "kallsyms_token_table",
	"kallsyms_token_index", "kallsyms_offsets", "kallsyms_markers", "kallsyms_relative_base", "entry_SYSCALL_64",
	"sys_call_table", "tk_core", "cgrp_dfl_root", "root_task_group", "start_kernel", "do_exit",
};

struct symbol {
	char *addr, *name, *module; /* in the text, terminated; module may be NULL */
	char type;
	uint32_t hash; /* of name */
};

/* split_symbols cuts the text of /proc/kallsyms into its fields, in place. (No
 * sscanf: it looks for the end of the whole text each time.) */
static size_t split_symbols(char *text, struct symbol *s, size_t max)
{
	size_t n = 0;
	for (char *l = text, *end; n < max && (end = strchr(l, '\n')); l = end + 1) {
		char *sp = memchr(l, ' ', end - l);
		*end = 0;
		if (!sp || end - sp < 4)
			continue;
		*sp = 0;
		s[n] = (struct symbol){ .addr = l, .type = sp[1], .name = sp + 3, .hash = 2166136261u };
		for (char *p = sp + 3; *p; p++) {
			if (*p == '\t') {
				*p = 0;
				if (p[1] == '[') {
					s[n].module = p + 2;
					p[1 + strcspn(p + 1, "]")] = 0;
				}
				break;
			}
			s[n].hash = (s[n].hash ^ (unsigned char)*p) * 16777619u;
		}
		n++;
	}
	return n;
}

/* report_symbols writes chosen symbols: the wanted, every so manieth, and some of each module. */
void report_symbols(FILE *out)
{
	size_t size, lines = 0;
	char *text = slurp("/proc/kallsyms", &size);
	const char *last = "";
	int of_module = 0;
	if (!text)
		return;
	for (size_t k = 0; k < size; k++)
		lines += text[k] == '\n';
	struct symbol *all = calloc(lines + 1, sizeof *all);
	size_t n = split_symbols(text, all, lines);
	fprintf(out, "{\"kind\":\"kallsyms\",\"symbols\":%zu}\n", n);
	for (size_t i = 0; i < n; i++) {
		struct symbol *s = &all[i];
		int want = i % (n / 100 + 1) == 7;
		for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++)
			want |= wanted[k][0] == s->name[0] && !strcmp(wanted[k], s->name);
		if (s->module) {
			if (strcmp(last, s->module)) {
				last = s->module;
				of_module = 0;
			}
			want |= of_module++ < 20;
		}
		if (!want)
			continue;
		/* How many symbols have this name? A name of one is unambiguous. */
		int count = 0;
		for (size_t k = 0; k < n; k++)
			count += all[k].hash == s->hash && !strcmp(all[k].name, s->name);
		fprintf(out, "{\"kind\":\"symbol\",\"addr\":\"0x%s\",\"type\":\"%c\",\"count\":%d", s->addr, s->type, count);
		json_string(out, "name", s->name);
		if (s->module)
			json_string(out, "module", s->module);
		fprintf(out, "}\n");
	}
	free(all);
	free(text);
}

void report_iomem(FILE *out)
{
	char *text = slurp("/proc/iomem", NULL), *save;
	if (!text)
		return;
	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
		unsigned long start, end;
		int at = 0;
		if (sscanf(l, " %lx-%lx : %n", &start, &end, &at) < 2 || !at)
			continue;
		if (strncmp(l + at, "Kernel ", 7) && strcmp(l + at, "System RAM"))
			continue;
		fprintf(out, "{\"kind\":\"iomem\",\"start\":\"%#lx\",\"end\":\"%#lx\"", start, end);
		json_string(out, "name", l + at);
		fprintf(out, "}\n");
	}
	free(text);
}
