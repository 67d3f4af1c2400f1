// The benchmark's guest runs this: many processes with open files and sockets,
// as a used machine has them. It prints how many it made.
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { processes = 520, files_each = 4 };

static int files, sockets;

static void open_files(int n) {
	char path[64];
	for (int i = 0; i < files_each; i++) {
		snprintf(path, sizeof path, "/fill/open/%03d/data-%d.log", n, i);
		if (i == 0) {
			char dir[64];
			snprintf(dir, sizeof dir, "/fill/open/%03d", n);
			if (mkdir(dir, 0755) < 0)
				err(1, "mkdir %s", dir);
		}
		int fd = open(path, O_CREAT | O_RDWR, 0644);
		if (fd < 0 || write(fd, path, sizeof path) != sizeof path)
			err(1, "open %s", path);
		files++;
	}
}

// open_socket gives every third process a listening TCP socket, a UDP socket, a
// UNIX socket.
static void open_socket(int n) {
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(20000 + n), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd, r;
	switch (n % 3) {
	case 0:
		fd = socket(AF_INET, SOCK_STREAM, 0);
		r = bind(fd, (struct sockaddr *)&in, sizeof in) || listen(fd, 8);
		break;
	case 1:
		fd = socket(AF_INET, SOCK_DGRAM, 0);
		r = bind(fd, (struct sockaddr *)&in, sizeof in);
		break;
	default:
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		snprintf(un.sun_path, sizeof un.sun_path, "/fill/open/%03d/socket", n);
		r = bind(fd, (struct sockaddr *)&un, sizeof un) || listen(fd, 8);
	}
	if (fd < 0 || r)
		err(1, "socket %d", n);
	sockets++;
}

int main(void) {
	int up[2];
	if (mkdir("/fill/open", 0755) < 0 || pipe(up) < 0)
		err(1, "mkdir or pipe");
	for (int n = 0; n < processes; n++) {
		pid_t pid = fork();
		if (pid < 0)
			err(1, "fork %d", n);
		files += files_each;
		sockets++;
		if (pid > 0)
			continue;
		char name[16];
		snprintf(name, sizeof name, "fill-%d", n);
		prctl(PR_SET_NAME, name);
		open_files(n);
		open_socket(n);
		if (write(up[1], "", 1) != 1)
			err(1, "write");
		for (;;)
			pause();
	}
	for (int n = 0; n < processes; n++) {
		char c;
		if (read(up[0], &c, 1) != 1)
			err(1, "read");
	}
	printf("filled: %d processes, %d files, %d sockets\n", processes, files, sockets);
	fflush(stdout);
	for (;;)
		pause();
}
