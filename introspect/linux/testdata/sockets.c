/*
 * Runs in a guest of the lab: makes sockets of every family, in every state, in
 * two network namespaces, and says what the kernel says of each file of its own,
 * one line a socket:
 *
 *   sock PID FD INODE NETNS UID DOMAIN TYPE PROTOCOL TCPSTATE LOCAL|REMOTE
 *
 * and one for each two sockets that it connected:
 *
 *   peers INODE INODE
 *
 * then READY and the processes. "sockets many N M" makes N TCP connections and M
 * processes, "sockets storm" makes and closes sockets without end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define PF_XDP_ 44
#define UDPLITE 136

static void die(const char *what)
{
	printf("FAILED %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static int must(const char *what, int n)
{
	if (n < 0)
		die(what);
	return n;
}

static struct sockaddr_storage addr_of(int family, const char *ip, int port)
{
	struct sockaddr_storage a;
	struct sockaddr_in *in = (void *)&a;
	struct sockaddr_in6 *in6 = (void *)&a;

	memset(&a, 0, sizeof a);
	a.ss_family = family;
	if (family == AF_INET) {
		in->sin_port = htons(port);
		inet_pton(family, ip, &in->sin_addr);
	} else {
		in6->sin6_port = htons(port);
		inet_pton(family, ip, &in6->sin6_addr);
	}
	return a;
}

static int made(int family, int type, int proto, const char *ip, int port)
{
	struct sockaddr_storage a = addr_of(family, ip, port);
	int on = 1, fd = must("socket", socket(family, type, proto));

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	must("bind", bind(fd, (void *)&a, sizeof a));
	return fd;
}

static int to(int family, int type, int proto, const char *ip, int port)
{
	struct sockaddr_storage a = addr_of(family, ip, port);
	int fd = must("socket", socket(family, type, proto));

	must("connect", connect(fd, (void *)&a, sizeof a));
	return fd;
}

/* A pair of connected sockets over the listener. */
struct pair { int client, server; };

static struct pair pair(int family, const char *ip, int listener, int port)
{
	struct pair p;

	p.client = to(family, SOCK_STREAM, 0, ip, port);
	p.server = must("accept", accept(listener, NULL, NULL));
	return p;
}

/* Writes until the other side, which does not read, takes no more. */
static void fill(int fd)
{
	char buf[4096] = {0};
	int idle = 0;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (idle < 8)
		if (write(fd, buf, sizeof buf) < 0) {
			usleep(10000);
			idle++;
		}
}

static void tcp_states(int family, const char *ip, int port)
{
	int l = made(family, SOCK_STREAM, 0, ip, port), on = 60, fd;
	struct pair p;
	struct sockaddr_storage a;

	must("listen", listen(l, 64));
	pair(family, ip, l, port);			/* ESTAB */
	p = pair(family, ip, l, port);			/* CLOSE-WAIT, FIN-WAIT-2 */
	shutdown(p.client, SHUT_WR);
	p = pair(family, ip, l, port);			/* FIN-WAIT-1 */
	fill(p.client);
	shutdown(p.client, SHUT_WR);
	p = pair(family, ip, l, port);			/* CLOSING, FIN-WAIT-2 */
	fill(p.client);
	shutdown(p.client, SHUT_WR);
	shutdown(p.server, SHUT_WR);
	p = pair(family, ip, l, port);			/* LAST-ACK, FIN-WAIT-2 */
	fill(p.server);
	shutdown(p.client, SHUT_WR);
	usleep(100000);
	shutdown(p.server, SHUT_WR);
	p = pair(family, ip, l, port);			/* TIME-WAIT */
	close(p.client);
	usleep(10000);
	close(p.server);
	p = pair(family, ip, l, port);			/* FIN-WAIT-2 of nobody */
	close(p.client);
	p = pair(family, ip, l, port);			/* FIN-WAIT-1 of nobody */
	fill(p.client);
	close(p.client);
	to(family, SOCK_STREAM, 0, ip, port);		/* waits to be accepted */
	fd = made(family, SOCK_STREAM, 0, ip, port + 1); /* SYN-RECV, ESTAB */
	must("defer", setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &on, sizeof on));
	must("listen", listen(fd, 8));
	to(family, SOCK_STREAM, 0, ip, port + 1);
	fd = made(family, SOCK_STREAM, 0, ip, port + 2);
	must("listen", listen(fd, 0));
	to(family, SOCK_STREAM, 0, ip, port + 2);	/* fills the listener's queue */
	fd = must("socket", socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0)); /* SYN-SENT */
	a = addr_of(family, ip, port + 2);
	if (connect(fd, (void *)&a, sizeof a) == 0 || errno != EINPROGRESS)
		die("connect to one who does not answer");
	made(family, SOCK_STREAM, 0, ip, port + 3);	/* bound, in no table of TCP */
	must("socket", socket(family, SOCK_STREAM, 0));
}

static void udp(int family, const char *ip, int port)
{
	int fd;

	made(family, SOCK_DGRAM, 0, ip, port);
	made(family, SOCK_DGRAM, 0, family == AF_INET ? "0.0.0.0" : "::", port + 1);
	to(family, SOCK_DGRAM, 0, ip, port);
	must("socket", socket(family, SOCK_DGRAM, 0));
	fd = must("socket", socket(family, SOCK_DGRAM, 0));
	setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
	struct sockaddr_storage a = addr_of(family, ip, port + 2);
	must("bind", bind(fd, (void *)&a, sizeof a));
	/* Connected and then no more: in no table again. */
	fd = to(family, SOCK_DGRAM, 0, ip, port);
	a.ss_family = AF_UNSPEC;
	must("disconnect", connect(fd, (void *)&a, sizeof a));
	fd = socket(family, SOCK_DGRAM, UDPLITE); /* went in 7.x */
	if (fd >= 0) {
		a = addr_of(family, ip, port + 3);
		must("bind", bind(fd, (void *)&a, sizeof a));
	}
}

static void raw(int family, const char *ip)
{
	int icmp = family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6, fd;
	struct sockaddr_storage a;

	must("raw", socket(family, SOCK_RAW, icmp));
	to(family, SOCK_RAW, 89, ip, 0);
	made(family, SOCK_RAW, 253, ip, 0);
	fd = to(family, SOCK_RAW, 254, ip, 0);		/* leaves its table */
	memset(&a, 0, sizeof a);
	must("disconnect", connect(fd, (void *)&a, sizeof a));
	must("ping", socket(family, SOCK_DGRAM, icmp));
	made(family, SOCK_DGRAM, icmp, ip, 77);
	to(family, SOCK_DGRAM, icmp, ip, 0);
}

static int unix_at(int type, const char *name, size_t n)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = must("unix", socket(AF_UNIX, type, 0));

	memcpy(a.sun_path, name, n);
	must("bind", bind(fd, (void *)&a, offsetof(struct sockaddr_un, sun_path) + n));
	return fd;
}

static int unix_to(int type, const char *name, size_t n)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = must("unix", socket(AF_UNIX, type, 0));

	memcpy(a.sun_path, name, n);
	must("connect", connect(fd, (void *)&a, offsetof(struct sockaddr_un, sun_path) + n));
	return fd;
}

static unsigned long inode_of(int fd)
{
	struct stat st;

	must("fstat", fstat(fd, &st));
	return st.st_ino;
}

static void peers(int a, int b)
{
	printf("peers %lu %lu\n", inode_of(a), inode_of(b));
}

static void unixes(const char *tag)
{
	char path[108], longest[108];
	int v[2], l, c;

	snprintf(path, sizeof path, "/tmp/%s stream.sock", tag);
	l = unix_at(SOCK_STREAM, path, strlen(path) + 1);
	must("listen", listen(l, 8));
	c = unix_to(SOCK_STREAM, path, strlen(path) + 1);
	peers(c, must("accept", accept(l, NULL, NULL)));
	unix_to(SOCK_STREAM, path, strlen(path) + 1);	/* waits to be accepted */
	memset(longest, 'x', sizeof longest);
	snprintf(longest, 20, "/tmp/%s-long", tag);
	longest[strlen(longest)] = '-';
	unix_at(SOCK_SEQPACKET, longest, sizeof longest); /* no room for a NUL */
	unix_at(SOCK_DGRAM, "\0abstract\0\xff\x1b[31m", 16);
	unix_to(SOCK_DGRAM, "\0abstract\0\xff\x1b[31m", 16);
	l = unix_at(SOCK_SEQPACKET, "\0seq", 4);
	must("listen", listen(l, 1));
	must("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, v));
	peers(v[0], v[1]);
	must("pair", socketpair(AF_UNIX, SOCK_DGRAM, 0, v));
	close(v[1]);					/* its peer is gone */
	must("unix", socket(AF_UNIX, SOCK_STREAM, 0));
}

static void others(void)
{
	struct sockaddr_nl nl = {.nl_family = AF_NETLINK, .nl_pid = 0, .nl_groups = 1};
	struct sockaddr_ll ll = {.sll_family = AF_PACKET, .sll_protocol = htons(0x0806)};
	int fd = must("netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));

	must("bind", bind(fd, (void *)&nl, sizeof nl));
	nl.nl_pid = 4000000123u;
	fd = must("netlink", socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT));
	must("bind", bind(fd, (void *)&nl, sizeof nl));
	must("netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));	/* not bound */
	must("packet", socket(AF_PACKET, SOCK_RAW, htons(3)));
	fd = must("packet", socket(AF_PACKET, SOCK_DGRAM, 0));
	ll.sll_ifindex = if_nametoindex("lo");
	must("bind", bind(fd, (void *)&ll, sizeof ll));
	must("xdp", socket(PF_XDP_, SOCK_RAW, 0));
}

static void modular(void)
{
	struct sockaddr_vm vm = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 5000};
	struct sockaddr_storage a = addr_of(AF_INET, "127.0.0.1", 6600);
	int fd = must("vsock", socket(AF_VSOCK, SOCK_STREAM, 0)), l;

	must("bind", bind(fd, (void *)&vm, sizeof vm));
	must("listen", listen(fd, 8));
	vm.svm_cid = VMADDR_CID_LOCAL;
	l = must("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	must("connect vsock", connect(l, (void *)&vm, sizeof vm));
	must("accept", accept(fd, NULL, NULL));
	fd = must("sctp", socket(AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP));
	must("bind", bind(fd, (void *)&a, sizeof a));
	must("listen", listen(fd, 8));
	l = made(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 6700);
	close(l);
	l = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
	if (l < 0)
		return;	/* CONFIG_MPTCP=n */
	a = addr_of(AF_INET, "127.0.0.1", 6700);
	must("bind", bind(l, (void *)&a, sizeof a));
	must("listen", listen(l, 8));
	to(AF_INET, SOCK_STREAM, IPPROTO_MPTCP, "127.0.0.1", 6700);
	must("accept", accept(l, NULL, NULL));
}

static void text_of(char *out, size_t n, const struct sockaddr_storage *a, socklen_t len)
{
	const struct sockaddr_in *in = (void *)a;
	const struct sockaddr_in6 *in6 = (void *)a;
	const struct sockaddr_nl *nl = (void *)a;
	const struct sockaddr_vm *vm = (void *)a;
	const struct sockaddr_un *un = (void *)a;
	char ip[64];

	*out = 0;
	if (len < 2)
		return;
	switch (a->ss_family) {
	case AF_INET:
		snprintf(out, n, "%s %d", inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip), ntohs(in->sin_port));
		break;
	case AF_INET6:
		snprintf(out, n, "%s %d", inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof ip), ntohs(in6->sin6_port));
		break;
	case AF_NETLINK:
		snprintf(out, n, " %u", nl->nl_pid);
		break;
	case AF_VSOCK:
		snprintf(out, n, "%u %u", vm->svm_cid, vm->svm_port);
		break;
	case AF_UNIX:
		len -= offsetof(struct sockaddr_un, sun_path);
		for (size_t i = 0; i < len && i < sizeof un->sun_path; i++)
			out += sprintf(out, "%02x", (unsigned char)un->sun_path[i]);
	}
}

static int option(int fd, int name)
{
	int v = -1;
	socklen_t n = sizeof v;

	getsockopt(fd, SOL_SOCKET, name, &v, &n);
	return v;
}

static unsigned long number_in(const char *path)
{
	char text[64] = {0}, *p;

	if (readlink(path, text, sizeof text - 1) < 0 || !(p = strchr(text, '[')))
		return 0;
	return strtoul(p + 1, NULL, 10);
}

static void report(void)
{
	unsigned long ns = number_in("/proc/self/ns/net");

	for (int fd = 0; fd < 4096; fd++) {
		struct sockaddr_storage a;
		struct tcp_info info = {0};
		socklen_t n = sizeof info;
		struct stat st;
		char local[512] = "", remote[512] = "";

		if (fstat(fd, &st) < 0 || !S_ISSOCK(st.st_mode))
			continue;
		if (option(fd, SO_PROTOCOL) == IPPROTO_TCP && option(fd, SO_DOMAIN) != AF_UNIX)
			getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n);
		memset(&a, 0, sizeof a);
		n = sizeof a;
		if (getsockname(fd, (void *)&a, &n) == 0)
			text_of(local, sizeof local, &a, n);
		memset(&a, 0, sizeof a);
		n = sizeof a;
		if (getpeername(fd, (void *)&a, &n) == 0)
			text_of(remote, sizeof remote, &a, n);
		printf("sock %d %d %lu %lu %d %d %d %d %d %s|%s\n", getpid(), fd, (unsigned long)st.st_ino, ns, st.st_uid,
		       option(fd, SO_DOMAIN), option(fd, SO_TYPE), option(fd, SO_PROTOCOL), info.tcpi_state, local, remote);
	}
	fflush(stdout);
}

static void interface_up(void)
{
	struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = must("socket", socket(AF_INET, SOCK_DGRAM, 0));

	must("up", ioctl(fd, SIOCSIFFLAGS, &r));
	close(fd);
	must("ping_group_range", system("echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"));
}

/* A process that has all that this one has open: a second owner. */
static pid_t heir(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		report();
		for (;;)
			pause();
	}
	return pid;
}

/* Sockets come and go. */
static void storm(void)
{
	int l = made(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 9100), v[2];
	struct linger hard = {1, 0};

	must("listen", listen(l, 128));
	puts("READY");
	fflush(stdout);
	for (int n = 0;; n++) {
		struct pair p = pair(AF_INET, "127.0.0.1", l, 9100);
		int u = made(AF_INET, SOCK_DGRAM, 0, "127.0.0.1", 0), r = socket(AF_INET, SOCK_RAW, 89);
		int k = made(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 0), nl = socket(AF_NETLINK, SOCK_RAW, 0);
		struct sockaddr_nl any = {.nl_family = AF_NETLINK};

		must("listen", listen(k, 1));
		must("bind", bind(nl, (void *)&any, sizeof any));
		must("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, v));
		if (n % 16) /* else it stays in TIME-WAIT */
			setsockopt(p.client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
		if (n % 8 == 0 && fork() == 0)
			_exit(0);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		close(p.client), close(p.server), close(u), close(r), close(k), close(nl), close(v[0]), close(v[1]);
	}
}

int main(int argc, char **argv)
{
	struct rlimit many = {4096, 4096};
	pid_t a, b, c;
	int pipes[2], status;
	char x;

	setrlimit(RLIMIT_NOFILE, &many);
	signal(SIGCHLD, SIG_DFL);
	must("pipe", pipe(pipes));
	if (argc > 1 && strcmp(argv[1], "storm") == 0)
		storm();
	if (argc > 3) {
		int l;

		for (int i = atoi(argv[3]); i > 0; i--)
			if (fork() == 0)
				for (;;)
					pause();
		l = made(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 9000);
		must("listen", listen(l, 128));
		for (int i = atoi(argv[2]); i > 0; i--)
			pair(AF_INET, "127.0.0.1", l, 9000);
		puts("READY");
		fflush(stdout);
		for (;;)
			pause();
	}
	a = fork();
	if (a == 0) {
		interface_up();
		tcp_states(AF_INET, "127.0.0.1", 5000);
		udp(AF_INET, "127.0.0.1", 5000);
		raw(AF_INET, "127.0.0.1");
		unixes("first");
		others();
		modular();
		dup2(3, 1000);
		report();
		b = heir();
		printf("heir %d\n", b);
		fflush(stdout);
		write(pipes[1], "x", 1);
		for (;;)
			pause();
	}
	must("read", read(pipes[0], &x, 1));
	c = fork();
	if (c == 0) {
		int l, v6only = 0, fd;
		struct sockaddr_storage any = addr_of(AF_INET6, "::", 7000);

		must("unshare", unshare(CLONE_NEWNET));
		interface_up();
		usleep(200000);
		tcp_states(AF_INET6, "::1", 5000);
		tcp_states(AF_INET, "127.0.0.1", 5000);
		udp(AF_INET6, "::1", 5000);
		raw(AF_INET6, "::1");
		unixes("second");
		others();
		/* IPv4 over a socket of IPv6. */
		l = must("socket", socket(AF_INET6, SOCK_STREAM, 0));
		setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof v6only);
		must("bind", bind(l, (void *)&any, sizeof any));
		must("listen", listen(l, 8));
		to(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 7000);
		fd = must("accept", accept(l, NULL, NULL));
		to(AF_INET6, SOCK_STREAM, 0, "::ffff:127.0.0.1", 7000);
		if (setgid(1000) || setuid(1000))
			die("setuid");
		made(AF_INET6, SOCK_DGRAM, 0, "::1", 5999);
		(void)fd;
		report();
		write(pipes[1], "x", 1);
		for (;;)
			pause();
	}
	must("read", read(pipes[0], &x, 1));
	usleep(300000);
	if (waitpid(-1, &status, WNOHANG) > 0)
		die("a child ended");
	printf("READY %d %d\n", a, c);
	fflush(stdout);
	for (;;)
		pause();
}
