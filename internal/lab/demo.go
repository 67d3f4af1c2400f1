package lab

import (
	"fmt"
	"strings"
)

// DemoPayloadPrefix is what the demo's harmless test payload begins with.
const DemoPayloadPrefix = "VANTAGE-TEST-PAYLOAD-"

// DemoPayload is the whole text that an infected demo guest has in the memory
// of one process.
const DemoPayload = DemoPayloadPrefix + "this-text-is-harmless-and-in-memory-only"

// DemoInfectedComm is the name of the process that holds the payload.
const DemoInfectedComm = "cron"

// demoService is a process for a demo guest to run: a copy of busybox under
// another name, asleep.
type demoService struct {
	exe  string
	user string
	argv string // its last path element must be a command of busybox
}

func demoServices() []demoService {
	return []demoService{
		{"/usr/lib/systemd/systemd-journald", "root", "/usr/lib/systemd/sleep"},
		{"/usr/sbin/rsyslogd", "root", "/usr/sbin/rsyslogd -n /sleep"},
		{"/usr/sbin/sshd", "root", "sshd: /usr/sbin/sshd -D [listener] /sleep"},
		{"/usr/sbin/nginx", "root", "nginx: master process /usr/sbin/nginx /sleep"},
		{"/usr/sbin/nginx", "www-data", "nginx: worker process /sleep"},
		{"/usr/sbin/nginx", "www-data", "nginx: worker process /sleep"},
		{"/usr/lib/postgresql/15/bin/postgres", "postgres", "/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/sleep"},
		{"/usr/lib/postgresql/15/bin/postgres", "postgres", "postgres: checkpointer /sleep"},
		{"/usr/lib/postgresql/15/bin/postgres", "postgres", "postgres: walwriter /sleep"},
	}
}

// DemoInit returns a Config.Init that makes a guest look like a small server:
// processes named as those of nginx, postgres and sshd, all of them copies of
// busybox that sleep, and one named cron. When infected, that one holds
// DemoPayload in its anonymous memory and nowhere else: the guest's files and
// page cache have it in pieces only, it goes through no pipe, and it is never
// printed.
func DemoInit(infected bool, hostname string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hostname %s\n", shellQuote(hostname))
	made := map[string]bool{}
	for i, s := range demoServices() {
		if !made[s.exe] {
			made[s.exe] = true
			fmt.Fprintf(&b, "mkdir -p %s && cp /bin/busybox %s\n", s.exe[:strings.LastIndexByte(s.exe, '/')], s.exe)
		}
		run := fmt.Sprintf("exec -a %s %s %d", shellQuote(s.argv), s.exe, 100000000+i)
		if s.user == "root" {
			fmt.Fprintf(&b, "( %s ) &\n", run)
		} else {
			fmt.Fprintf(&b, "su -s /bin/sh %s -c %s &\n", s.user, shellQuote(run))
		}
	}
	b.WriteString("mkdir -p /etc/cron.d /run && cp /bin/busybox /usr/sbin/cron && mkfifo /run/cron.reboot\n")
	b.WriteString("cat > /etc/cron.d/jobs << 'JOBS'\n")
	if infected {
		b.WriteString(payloadScript())
	}
	// Opening a FIFO that no one writes to never ends, and needs no child: a
	// fork would leave copies of pages behind.
	b.WriteString(": > /run/cron.pid\nread -r job < /run/cron.reboot\nJOBS\n")
	b.WriteString("( exec -a '/usr/sbin/cron -f /sh' /usr/sbin/cron /etc/cron.d/jobs ) &\n")
	// The guest is up when that process has come to its last line, and each of
	// the others has become what it is to be.
	b.WriteString("until [ -e /run/cron.pid ]; do usleep 10000; done\n")
	fmt.Fprintf(&b, "until [ \"$(ps -o args | grep -c ' 1000000[0-9][0-9]$')\" -ge %d ]; do usleep 50000; done\n", len(demoServices()))
	return b.String()
}

// payloadScript sets a variable to DemoPayload with nothing but expansions of
// the shell itself, from pieces of a few bytes.
func payloadScript() string {
	const piece = 4
	var b, join strings.Builder
	for i := 0; i < len(DemoPayload); i += piece {
		// In reverse order, so that no two pieces follow each other in the file.
		part := DemoPayload[i:min(i+piece, len(DemoPayload))]
		fmt.Fprintf(&join, "$p%d", i/piece)
		line := fmt.Sprintf("p%d=%s\n", i/piece, part)
		rest := b.String()
		b.Reset()
		b.WriteString(line + rest)
	}
	return b.String() + "job=" + join.String() + "\n"
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
