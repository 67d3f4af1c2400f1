package linux

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// fakeStructs is a kernel of our own: small structures with the members that
// this package looks for, in the layout of a kernel with maple trees. A member
// is name:size, and :count for an array; a name with dots is a nested member.
const fakeStructs = `
task_struct       __state:4 flags:4 tasks:16 mm:8 exit_state:4 pid:4 tgid:4 real_parent:8 group_leader:8 thread_pid:8 pid_links:16:4 thread_node:16 start_boottime:8 real_cred:8 comm:1:16 nsproxy:8 signal:8 cgroups:8 cg_list:16 se.group_node:16 rt.run_list:16 dl.rb_node:24
signal_struct     thread_head:16
pid               level:4 tasks:8:4 numbers:16:1
upid              nr:4 pad:4 ns:8
pid_namespace     idr.idr_rt.xa_head:8 idr.idr_base:4 ns.inum:4
xa_node           shift:1 offset:1 slots:8:64
cred              uid:4 gid:4 euid:4 egid:4 user_ns:8
nsproxy           uts_ns:8 ipc_ns:8 mnt_ns:8 net_ns:8 cgroup_ns:8 time_ns:8
uts_namespace     name.sysname:1:65 name.nodename:1:65 name.release:1:65 name.version:1:65 name.machine:1:65 name.domainname:1:65 ns.inum:4
ipc_namespace     ns.inum:4
mnt_namespace     ns.inum:4
net               ns.inum:4
cgroup_namespace  ns.inum:4
time_namespace    ns.inum:4
user_namespace    ns.inum:4
mm_struct         mm_mt.ma_root:8 pgd:8 start_brk:8 brk:8 start_stack:8 arg_start:8 arg_end:8 env_end:8 exe_file:8 context.vdso:8
vm_area_struct    vm_start:8 vm_end:8 vm_mm:8 vm_flags:8 vm_ops:8 vm_pgoff:8 vm_file:8 vm_private_data:8
maple_range_64    parent:8 pivot:8:15 slot:8:16
maple_arange_64   parent:8 pivot:8:9 slot:8:10
maple_node        parent:8 slot:8:31
file              f_path:16 f_mode:4
path              mnt:8 dentry:8
dentry            d_hash.next:8 d_hash.pprev:8 d_parent:8 d_name.hash:4 d_name.len:4 d_name.name:8 d_iname:1:32 d_sb:8
mount             mnt_parent:8 mnt_mountpoint:8 mnt.mnt_root:8
super_block       s_type:8
file_system_type  name:8
css_set           dfl_cgrp:8 cgrp_links:16 tasks:16 mg_tasks:16 dying_tasks:16 hlist:16
rq                curr:8 idle:8 rt.active.bitmap:8:2 rt.active.queue:16:100 dl.root.rb_root.rb_node:8 cfs_tasks:16
cgrp_cset_link    cgrp:8 cgrp_link:16
cgroup            kn:8 root:8
cgroup_root       name:1:64
kernfs_node       __parent:8 name:8
timekeeper        tkr_mono.clock:8 offs_real:8 offs_boot:8
tk_data           seq:8 timekeeper:24
module            state:4 list:16 name:1:56 mem:16:7
module_memory     base:8 size:4
module_kobject    kobj:16 mod:8
kobject           entry:16
kset              list:16
mod_tree_root     root.tree:8:2
mod_tree_node     mod:8 node:24
latch_tree_node   node:24
rb_node           __rb_parent_color:8 rb_right:8 rb_left:8
`

// fakeTypes is what profile.Types would say of fakeStructs.
type fakeTypes struct {
	fields map[string]profile.Field
	sizes  map[string]uint64
}

func newFakeTypes() *fakeTypes {
	t := &fakeTypes{fields: map[string]profile.Field{}, sizes: map[string]uint64{}}
	t.add(fakeStructs)
	mount := t.fields["mount.mnt.mnt_root"]
	t.fields["mount.mnt"] = profile.Field{Offset: mount.Offset, Size: 8}
	return t
}

// add adds structures: see fakeStructs.
func (t *fakeTypes) add(structs string) {
	for line := range strings.Lines(strings.TrimSpace(structs)) {
		words := strings.Fields(line)
		off := uint64(0)
		for _, w := range words[1:] {
			var f profile.Field
			name, rest, _ := strings.Cut(w, ":")
			if n, _ := fmt.Sscanf(rest, "%d:%d", &f.Elem, &f.Len); n == 1 {
				f.Size, f.Elem = f.Elem, 0
			} else {
				f.Size = f.Elem * f.Len
			}
			align := max(min(f.Size, 8), 1)
			if f.Len > 0 {
				align = min(f.Elem, 8)
			}
			off = (off + align - 1) / align * align
			f.Offset = off
			off += f.Size
			t.fields[words[0]+"."+name] = f
		}
		t.sizes[words[0]] = (off + 7) &^ 7
	}
}

func (t *fakeTypes) Field(path string) (profile.Field, error) {
	f, ok := t.fields[path]
	if !ok {
		return f, fmt.Errorf("%s: %w", path, profile.ErrNoType)
	}
	return f, nil
}

func (t *fakeTypes) Size(name string) (uint64, error) {
	n, ok := t.sizes[name]
	if !ok {
		return 0, fmt.Errorf("%s: %w", name, profile.ErrNoType)
	}
	return n, nil
}

func (t *fakeTypes) EnumValue(enum, name string) (int64, error) {
	return 0, fmt.Errorf("%s %s: %w", enum, name, profile.ErrNoType)
}

// ram is physical memory from 0 on.
type ram struct{ b []byte }

func (r *ram) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	if uint64(gpa) >= uint64(len(r.b)) {
		return 0, &hypervisor.AddressError{Op: "read", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	n := copy(p, r.b[gpa:])
	if n < len(p) {
		return n, &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(n), Err: hypervisor.ErrNotRAM}
	}
	return n, nil
}

func (r *ram) Ranges() []hypervisor.Range { return []hypervisor.Range{{Size: uint64(len(r.b))}} }

// fake is a guest made of fakeStructs: its memory is mapped at fakeBase, and a
// bump allocator hands it out.
type fake struct {
	ram   *ram
	types *fakeTypes
	next  hypervisor.VirtAddr
	guest *Guest

	initTask, initPIDNS hypervisor.VirtAddr
	root                hypervisor.VirtAddr // xa_node of the pid index
	mnt                 hypervisor.VirtAddr // struct mount of the root
	rootDentry          hypervisor.VirtAddr
	css                 hypervisor.VirtAddr
	nsproxy, userNS     hypervisor.VirtAddr
	modList, modTree    hypervisor.VirtAddr
	kset                hypervisor.VirtAddr
	processes           []fakeProcess
}

type fakeProcess struct{ task, pid, mm, signal hypervisor.VirtAddr }

const (
	fakeBase   hypervisor.VirtAddr = 0xffff_8880_0000_0000
	fakeSize                       = 2 << 20
	fakeTables                     = 0x10000 // page tables, below what is handed out
	fakeUser   hypervisor.VirtAddr = 0x40_0000
)

// newFake returns a guest with n processes of pids 1 to n, each with two
// mappings and arguments, and two modules.
func newFake(t testing.TB, n int) *fake {
	t.Helper()
	f := &fake{ram: &ram{make([]byte, fakeSize)}, types: newFakeTypes(), next: fakeBase + 0x20000}
	// Kernel: one page of 2 MiB at fakeBase. User: a page table at fakeUser.
	put := func(table, index, value uint64) { binary.LittleEndian.PutUint64(f.ram.b[table+index*8:], value) }
	const rw, user, large = 3, 4, 0x80
	base := uint64(fakeBase)
	put(fakeTables, base>>39&511, fakeTables+0x1000|rw)
	put(fakeTables+0x1000, base>>30&511, fakeTables+0x2000|rw)
	put(fakeTables+0x2000, base>>21&511, 0|rw|large)
	put(fakeTables, 0, fakeTables+0x3000|rw|user)
	put(fakeTables+0x3000, 0, fakeTables+0x4000|rw|user)
	put(fakeTables+0x4000, uint64(fakeUser)>>21, fakeTables+0x5000|rw|user)
	args := f.alloc(2*hypervisor.PageSize, hypervisor.PageSize)
	put(fakeTables+0x5000, 0, uint64(args-fakeBase)|rw|user)
	f.write(args, "prog\x00--flag\x00a\xffb\x00\x00last\x00")

	lay, err := newLayout(f.types)
	if err != nil {
		t.Fatal(err)
	}
	root := paging.Root{Mode: paging.Mode4Level, CR3: fakeTables, NX: true}
	k := &profile.Kernel{Release: "6.1.0-fake", VirtBase: linkBase, PageOffset: fakeBase, Root: root, Space: paging.New(f.ram, root)}
	f.guest = &Guest{mem: f.ram, kernel: k, lay: lay, log: slog.New(slog.DiscardHandler), types: f.types, symbol: f.symbol}
	f.guest.r = reader{virtReader: k.Space, lowest: kernelHalf4Level}
	f.globals()
	for pid := 1; pid <= n; pid++ {
		f.process(pid)
	}
	f.modules()
	return f
}

// symbol finds none: the fake's variables are set one by one.
func (f *fake) symbol(name string) (hypervisor.VirtAddr, error) {
	return 0, fmt.Errorf("%s: %w", name, profile.ErrNoSymbol)
}

func (f *fake) alloc(n, align uint64) hypervisor.VirtAddr {
	a := (uint64(f.next) + align - 1) / align * align
	f.next = hypervisor.VirtAddr(a + n)
	if f.next > fakeBase+fakeSize {
		panic("fake guest is full")
	}
	return hypervisor.VirtAddr(a)
}

func (f *fake) object(name string) hypervisor.VirtAddr { return f.alloc(f.types.sizes[name], 8) }

func (f *fake) write(at hypervisor.VirtAddr, s string) { copy(f.ram.b[at-fakeBase:], s) }

func (f *fake) u64(at hypervisor.VirtAddr) uint64 {
	return binary.LittleEndian.Uint64(f.ram.b[at-fakeBase:])
}

func (f *fake) put64(at hypervisor.VirtAddr, v uint64) {
	binary.LittleEndian.PutUint64(f.ram.b[at-fakeBase:], v)
}

// member returns the address of a member of the structure at obj.
func (f *fake) member(obj hypervisor.VirtAddr, path string) hypervisor.VirtAddr {
	m, err := f.types.Field(path)
	if err != nil {
		panic(err)
	}
	return obj + hypervisor.VirtAddr(m.Offset)
}

func (f *fake) set(obj hypervisor.VirtAddr, path string, v uint64) {
	m, _ := f.types.Field(path)
	b := f.ram.b[f.member(obj, path)-fakeBase:]
	switch m.Size {
	case 1:
		b[0] = byte(v)
	case 4:
		binary.LittleEndian.PutUint32(b, uint32(v))
	default:
		binary.LittleEndian.PutUint64(b, v)
	}
}

// append adds the list_head at node to the end of the list at head.
func (f *fake) append(head, node hypervisor.VirtAddr) {
	if f.u64(head) == 0 {
		f.put64(head, uint64(head))
		f.put64(head+8, uint64(head))
	}
	if node == 0 {
		return
	}
	last := hypervisor.VirtAddr(f.u64(head + 8))
	f.put64(last, uint64(node))
	f.put64(node+8, uint64(last))
	f.put64(node, uint64(head))
	f.put64(head+8, uint64(node))
}

// unlink takes the list_head at node out of its list.
func (f *fake) unlink(node hypervisor.VirtAddr) {
	next, prev := hypervisor.VirtAddr(f.u64(node)), hypervisor.VirtAddr(f.u64(node+8))
	f.put64(prev, uint64(next))
	f.put64(next+8, uint64(prev))
}

func (f *fake) text(s string) hypervisor.VirtAddr {
	a := f.alloc(uint64(len(s)+1), 1)
	f.write(a, s)
	return a
}

func (f *fake) globals() {
	s := &f.guest.sym
	f.initTask = f.object("task_struct")
	f.append(f.member(f.initTask, "task_struct.tasks"), 0)
	f.initPIDNS = f.object("pid_namespace")
	f.set(f.initPIDNS, "pid_namespace.ns.inum", 4026531836)
	f.root = f.alloc(f.types.sizes["xa_node"], 64)
	f.set(f.initPIDNS, "pid_namespace.idr.idr_rt.xa_head", uint64(f.root)|2)

	f.nsproxy = f.object("nsproxy")
	for i, kind := range []string{"uts", "ipc", "mnt", "net", "cgroup", "time"} {
		name := kind + "_namespace"
		if kind == "net" {
			name = "net"
		}
		ns := f.object(name)
		f.set(ns, name+".ns.inum", uint64(100+i))
		f.set(f.nsproxy, "nsproxy."+kind+"_ns", uint64(ns))
	}
	f.userNS = f.object("user_namespace")
	f.set(f.userNS, "user_namespace.ns.inum", 200)

	f.rootDentry = f.object("dentry")
	f.dentry(f.rootDentry, f.rootDentry, "/")
	f.mnt = f.object("mount")
	f.set(f.mnt, "mount.mnt_parent", uint64(f.mnt))
	f.set(f.mnt, "mount.mnt.mnt_root", uint64(f.rootDentry))

	f.css = f.object("css_set")
	for _, list := range []string{"cgrp_links", "tasks", "mg_tasks", "dying_tasks"} {
		f.append(f.member(f.css, "css_set."+list), 0)
	}
	parent := hypervisor.VirtAddr(0)
	for _, name := range []string{"", "system.slice", "docker-0123456789abcdef.scope"} {
		kn := f.object("kernfs_node")
		f.set(kn, "kernfs_node.__parent", uint64(parent))
		f.set(kn, "kernfs_node.name", uint64(f.text(name)))
		f.next = (f.next + 7) &^ 7
		parent = kn
	}
	cgrp := f.object("cgroup")
	f.set(cgrp, "cgroup.kn", uint64(parent))
	f.set(f.css, "css_set.dfl_cgrp", uint64(cgrp))

	tk := f.object("tk_data")
	f.put64(f.member(tk, "tk_data.timekeeper"), uint64(tk)) // tkr_mono.clock: any kernel address
	f.put64(f.member(tk, "tk_data.timekeeper")+8, 1_700_000_100_000_000_000)
	f.put64(f.member(tk, "tk_data.timekeeper")+16, 100_000_000_000)
	uts := f.object("uts_namespace")
	f.write(f.member(uts, "uts_namespace.name.nodename"), "fakehost")
	line := f.alloc(8, 8)
	f.put64(line, uint64(f.text("quiet splash")))
	f.next = (f.next + 7) &^ 7
	*s = symbols{initTask: f.initTask, initPIDNS: f.initPIDNS, timekeeper: tk, initUTSNS: uts, commandLine: line}
}

func (f *fake) dentry(at, parent hypervisor.VirtAddr, name string) {
	f.set(at, "dentry.d_parent", uint64(parent))
	f.set(at, "dentry.d_hash.pprev", uint64(at))
	f.set(at, "dentry.d_name.len", uint64(len(name)))
	f.set(at, "dentry.d_name.name", uint64(f.member(at, "dentry.d_iname")))
	f.write(f.member(at, "dentry.d_iname"), name)
}

func (f *fake) file(name string) hypervisor.VirtAddr {
	dir, d := f.object("dentry"), f.object("dentry")
	f.dentry(dir, f.rootDentry, "usr")
	f.dentry(d, dir, name)
	file := f.object("file")
	path := f.member(file, "file.f_path")
	f.put64(path, uint64(f.member(f.mnt, "mount.mnt")))
	f.put64(path+8, uint64(d))
	return file
}

// process makes the process pid, a child of pid 1.
func (f *fake) process(pid int) {
	p := fakeProcess{
		task: f.object("task_struct"), pid: f.object("pid"), mm: f.object("mm_struct"), signal: f.object("signal_struct"),
	}
	parent := f.initTask
	if len(f.processes) > 0 {
		parent = f.processes[0].task
	}
	f.processes = append(f.processes, p)
	cred := f.object("cred")
	f.set(cred, "cred.uid", uint64(1000+pid))
	f.set(cred, "cred.gid", 7)
	f.set(cred, "cred.user_ns", uint64(f.userNS))
	for path, v := range map[string]uint64{
		"__state": 1, "mm": uint64(p.mm), "pid": uint64(pid), "tgid": uint64(pid), "real_parent": uint64(parent),
		"group_leader": uint64(p.task), "thread_pid": uint64(p.pid), "start_boottime": uint64(pid) * 1e9,
		"real_cred": uint64(cred), "nsproxy": uint64(f.nsproxy), "signal": uint64(p.signal), "cgroups": uint64(f.css),
	} {
		f.set(p.task, "task_struct."+path, v)
	}
	f.write(f.member(p.task, "task_struct.comm"), fmt.Sprintf("proc-%d", pid))
	f.append(f.member(f.initTask, "task_struct.tasks"), f.member(p.task, "task_struct.tasks"))
	f.append(f.member(p.signal, "signal_struct.thread_head"), f.member(p.task, "task_struct.thread_node"))
	f.append(f.member(f.css, "css_set.tasks"), f.member(p.task, "task_struct.cg_list"))
	links := f.member(p.task, "task_struct.pid_links")
	for kind := range hypervisor.VirtAddr(2) {
		f.put64(f.member(p.pid, "pid.tasks")+8*kind, uint64(links+16*kind))
	}
	f.put64(f.member(p.pid, "pid.numbers"), uint64(pid))
	f.put64(f.member(p.pid, "pid.numbers")+8, uint64(f.initPIDNS))
	f.put64(f.member(f.root, "xa_node.slots")+hypervisor.VirtAddr(8*pid), uint64(p.pid))

	exe := f.file(fmt.Sprintf("bin-%d", pid))
	for path, v := range map[string]uint64{
		"pgd": uint64(fakeBase) + fakeTables, "exe_file": uint64(exe), "arg_start": uint64(fakeUser), "arg_end": uint64(fakeUser) + 22,
		"start_stack": 0x7ffd_0000_0800,
	} {
		f.set(p.mm, "mm_struct."+path, v)
	}
	leaf := f.alloc(256, 256)
	ranges := []struct{ start, end, flags, file uint64 }{
		{uint64(fakeUser), uint64(fakeUser) + 0x2000, vmRead | vmExec, uint64(exe)},
		{0x7ffd_0000_0000, 0x7ffd_0002_1000, vmRead | vmWrite, 0},
	}
	slot, last := 0, uint64(0)
	place := func(end, entry uint64) {
		f.put64(f.member(leaf, "maple_range_64.pivot")+hypervisor.VirtAddr(8*slot), end-1)
		f.put64(f.member(leaf, "maple_range_64.slot")+hypervisor.VirtAddr(8*slot), entry)
		slot, last = slot+1, end
	}
	for _, r := range ranges {
		v := f.object("vm_area_struct")
		f.set(v, "vm_area_struct.vm_start", r.start)
		f.set(v, "vm_area_struct.vm_end", r.end)
		f.set(v, "vm_area_struct.vm_mm", uint64(p.mm))
		f.set(v, "vm_area_struct.vm_flags", r.flags)
		f.set(v, "vm_area_struct.vm_file", r.file)
		if r.start > last {
			place(r.start, 0)
		}
		place(r.end, uint64(v))
	}
	f.set(p.mm, "mm_struct.mm_mt.ma_root", uint64(leaf)|1<<mapleTypeShift|6)
}

// modules makes two modules, in all three views.
func (f *fake) modules() {
	s := &f.guest.sym
	f.modList = f.alloc(16, 8)
	f.append(f.modList, 0)
	kset, pointer := f.object("kset"), f.alloc(8, 8)
	f.kset = f.member(kset, "kset.list")
	f.append(f.kset, 0)
	f.put64(pointer, uint64(kset))
	f.modTree = f.object("mod_tree_root")
	s.modules, s.moduleKset, s.modTree = f.modList, pointer, f.modTree
	above := f.member(f.modTree, "mod_tree_root.root.tree")
	for i, name := range []string{"alpha", "beta"} {
		m := f.object("module")
		f.write(f.member(m, "module.name"), name)
		mem := f.member(m, "module.mem")
		f.put64(mem, 0xffff_ffff_c000_0000+uint64(i)<<12)
		f.put64(mem+8, 0x800)
		f.put64(mem+24, 0x400)
		f.append(f.modList, f.member(m, "module.list"))
		k := f.object("module_kobject")
		f.set(k, "module_kobject.mod", uint64(m))
		f.append(f.kset, f.member(k, "kobject.entry"))
		n := f.object("mod_tree_node")
		f.set(n, "mod_tree_node.mod", uint64(m))
		f.put64(above, uint64(f.member(n, "mod_tree_node.node")))
		above = f.member(n, "mod_tree_node.node") + 16 // rb_left
	}
}
