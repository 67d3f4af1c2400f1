package linux

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// What BTF does not tell, since they are macros, is what the headers say.
func TestKernelConstants(t *testing.T) {
	const (
		sched     = "include/linux/sched.h"
		mm        = "include/linux/mm.h"
		maple     = "include/linux/maple_tree.h"
		pageFlags = "include/linux/page-flags.h"
		elf       = "include/uapi/linux/elf.h"
		pgtable   = "arch/x86/include/asm/pgtable_types.h"

		socketH  = "include/linux/socket.h"
		netlinkH = "include/uapi/linux/netlink.h"
	)
	labtest.CheckConstants(t, []labtest.Constant{
		{Header: sched, Name: "PF_KTHREAD", Holds: labtest.Is(pfKthread)},
		{Header: sched, Name: "TASK_REPORT", Holds: labtest.Is(taskReport)},
		{Header: sched, Name: "TASK_IDLE", Holds: labtest.Is(taskIdle)},
		{Header: sched, Name: "TASK_RTLOCK_WAIT", Holds: labtest.Is(taskRTLockWait)},
		{Header: sched, Name: "TASK_FROZEN", Holds: labtest.Is(taskFrozen)},
		{Header: sched, Name: "TASK_NEW", Holds: labtest.Is(taskNew)},
		{Header: sched, Name: "EXIT_DEAD", Holds: labtest.Is(exitDead)},
		{Header: "include/linux/sched/prio.h", Name: "MAX_RT_PRIO", Holds: labtest.Is(viewRTPrios)},
		{Header: "include/linux/threads.h", Name: "PID_MAX_LIMIT", Holds: labtest.Is(maxPID)},
		{Header: "include/linux/pid_namespace.h", Name: "MAX_PID_NS_LEVEL", Holds: labtest.Is(maxPIDLevels)},
		{Header: mm, Name: "VM_READ", Holds: labtest.Is(vmRead)},
		{Header: mm, Name: "VM_WRITE", Holds: labtest.Is(vmWrite)},
		{Header: mm, Name: "VM_EXEC", Holds: labtest.Is(vmExec)},
		{Header: mm, Name: "VM_MAYSHARE", Holds: labtest.Is(vmMayShare)},
		{Header: maple, Name: "MAPLE_NODE_MASK", Holds: labtest.Is(mapleNodeMask)},
		{Header: maple, Name: "MAPLE_RESERVED_RANGE", Holds: labtest.Is(mapleMaxPrivate)},
		{Header: "include/linux/fs.h", Name: "FMODE_BACKING", Holds: func(bit uint64) bool { return bit&^fmodeMayBack == 0 }},
		{Header: "include/uapi/linux/limits.h", Name: "NAME_MAX", Holds: labtest.Is(nameMax)},
		{Header: "include/linux/kprobes.h", Name: "KPROBE_FLAG_GONE", Holds: labtest.Is(kprobeFlagGone)},
		{Header: "include/linux/kprobes.h", Name: "KPROBE_FLAG_DISABLED", Holds: labtest.Is(kprobeFlagDisabled)},
		{Header: "include/linux/kprobes.h", Name: "KPROBE_FLAG_OPTIMIZED", Holds: labtest.Is(kprobeFlagOptimized)},
		{Header: "include/linux/kprobes.h", Name: "KPROBE_FLAG_FTRACE", Holds: labtest.Is(kprobeFlagFtrace)},
		{Header: "include/uapi/linux/magic.h", Name: "BPF_FS_MAGIC", Holds: labtest.Is(bpfFSMagic)},
		{Header: "arch/x86/include/asm/cpufeatures.h", Name: "X86_FEATURE_PTI", Holds: labtest.Is(featurePTI)},
		{Header: mm, Name: "VM_PFNMAP", Holds: labtest.Is(vmPFNMap)},
		{Header: mm, Name: "VM_HUGETLB", Holds: labtest.Is(vmHugeTLB)},
		{Header: mm, Name: "VMA_MAYBE_GUARD_BIT", Holds: labtest.Is(vmBitMaybeGuard)},
		{Header: pageFlags, Name: "PAGE_MAPPING_ANON", Holds: labtest.Is(pageMappingAnon)},
		{Header: pageFlags, Name: "FOLIO_MAPPING_ANON", Holds: labtest.Is(pageMappingAnon)},
		{Header: pgtable, Name: "_PAGE_BIT_DIRTY", Holds: func(bit uint64) bool { return 1<<bit == pteDirty }},
		{Header: pgtable, Name: "_PAGE_BIT_SAVED_DIRTY", Holds: func(bit uint64) bool { return 1<<bit == pteSavedDirty }},
		{Header: "arch/x86/include/asm/pgtable_64.h", Name: "SWP_TYPE_BITS", Holds: labtest.Is(64 - swapTypeShift)},
		{Header: "include/linux/kdev_t.h", Name: "MINORBITS", Holds: labtest.Is(minorBits)},
		{Header: "include/uapi/asm-generic/fcntl.h", Name: "O_CLOEXEC", Holds: labtest.Is(oCloexec)},
		{Header: "include/linux/fs.h", Name: "I_CTIME_QUERIED", Holds: labtest.Is(ctimeQueried)},
		{Header: "include/linux/mount.h", Name: "MNT_NOSUID", Holds: labtest.Is(mntNoSUID)},
		{Header: "include/linux/mount.h", Name: "MNT_NODEV", Holds: labtest.Is(mntNoDev)},
		{Header: "include/linux/mount.h", Name: "MNT_NOEXEC", Holds: labtest.Is(mntNoExec)},
		{Header: "include/linux/mount.h", Name: "MNT_NOATIME", Holds: labtest.Is(mntNoATime)},
		{Header: "include/linux/mount.h", Name: "MNT_NODIRATIME", Holds: labtest.Is(mntNoDirATime)},
		{Header: "include/linux/mount.h", Name: "MNT_RELATIME", Holds: labtest.Is(mntRelATime)},
		{Header: "include/linux/mount.h", Name: "MNT_READONLY", Holds: labtest.Is(mntReadOnly)},
		{Header: "include/linux/mount.h", Name: "MNT_NOSYMFOLLOW", Holds: labtest.Is(mntNoSymFollow)},
		{Header: "include/linux/mount.h", Name: "MNT_CURSOR", Holds: labtest.Is(mntCursor)},
		{Header: "include/linux/fs.h", Name: "SB_RDONLY", Holds: labtest.Is(sbReadOnly)},
		{Header: "include/linux/fs.h", Name: "SB_SYNCHRONOUS", Holds: labtest.Is(sbSynchronous)},
		{Header: "include/linux/fs.h", Name: "SB_MANDLOCK", Holds: labtest.Is(sbMandLock)},
		{Header: "include/linux/fs.h", Name: "SB_DIRSYNC", Holds: labtest.Is(sbDirSync)},
		{Header: "include/linux/fs.h", Name: "SB_LAZYTIME", Holds: labtest.Is(sbLazyTime)},
		{Header: "include/linux/sched/loadavg.h", Name: "FSHIFT", Holds: labtest.Is(fShift)},
		{Header: "include/linux/panic.h", Name: "TAINT_OOT_MODULE", Holds: func(bit uint64) bool { return taints[bit].letter == 'O' }},
		{Header: "include/linux/panic.h", Name: "TAINT_FLAGS_COUNT", Holds: func(n uint64) bool { return n <= uint64(len(taints)) }},
		{Header: "include/uapi/linux/if_arp.h", Name: "ARPHRD_ETHER", Holds: labtest.Is(arphrdEther)},
		{Header: "include/uapi/linux/if_arp.h", Name: "ARPHRD_LOOPBACK", Holds: labtest.Is(arphrdLoopback)},
		{Header: socketH, Name: "AF_UNIX", Holds: labtest.Is(afUnix)},
		{Header: socketH, Name: "AF_INET", Holds: labtest.Is(afInet)},
		{Header: socketH, Name: "AF_INET6", Holds: labtest.Is(afInet6)},
		{Header: socketH, Name: "AF_NETLINK", Holds: labtest.Is(afNetlink)},
		{Header: socketH, Name: "AF_PACKET", Holds: labtest.Is(afPacket)},
		{Header: socketH, Name: "AF_VSOCK", Holds: labtest.Is(afVsock)},
		{Header: socketH, Name: "AF_XDP", Holds: labtest.Is(afXDP)},
		{Header: socketH, Name: "AF_MAX", Holds: func(n uint64) bool { return n <= afMax }},
		{Header: netlinkH, Name: "MAX_LINKS", Holds: labtest.Is(maxNetlinks)},
		{Header: netlinkH, Name: "NETLINK_KOBJECT_UEVENT", Holds: isSockName(sockNetlinkNames[:], "kobject_uevent")},
		{Header: netlinkH, Name: "NETLINK_AUDIT", Holds: isSockName(sockNetlinkNames[:], "audit")},
		{Header: netlinkH, Name: "NETLINK_NETFILTER", Holds: isSockName(sockNetlinkNames[:], "netfilter")},
		{Header: netlinkH, Name: "NETLINK_SMC", Holds: isSockName(sockNetlinkNames[:], "smc")},
		{Header: "include/net/af_unix.h", Name: "UNIX_HASH_SIZE", Holds: func(n uint64) bool { return n == sockUnixSlots || 2*n == sockUnixSlots }},
		{Header: "include/uapi/linux/un.h", Name: "UNIX_PATH_MAX", Holds: labtest.Is(sunPathMax)},
		{Header: "include/uapi/linux/vm_sockets.h", Name: "VMADDR_CID_ANY", Holds: labtest.Is(vmaddrAny)},
		{Header: "include/uapi/linux/if_ether.h", Name: "ETH_P_LLDP", Holds: func(n uint64) bool { return sockEtherTypes[uint16(n)] == "lldp" }},
		{Header: "include/uapi/linux/if_ether.h", Name: "ETH_P_PAE", Holds: func(n uint64) bool { return sockEtherTypes[uint16(n)] == "pae" }},
		{Header: "include/uapi/linux/if_ether.h", Name: "ETH_P_ALL", Holds: func(n uint64) bool { return sockEtherTypes[uint16(n)] == "all" }},
		{Header: "include/linux/namei.h", Name: "MAXSYMLINKS", Holds: labtest.Is(maxSymlinks)},
		{Header: elf, Name: "NT_PRSTATUS", Holds: labtest.Is(ntPRStatus)},
		{Header: elf, Name: "NT_PRPSINFO", Holds: labtest.Is(ntPRPSInfo)},
		{Header: elf, Name: "NT_AUXV", Holds: labtest.Is(ntAUXV)},
		{Header: elf, Name: "NT_FILE", Holds: labtest.Is(ntFile)},
		{Header: elf, Name: "PN_XNUM", Holds: labtest.Is(pnXNum)},
		{Header: "arch/x86/include/asm/pgtable_64.h", Name: "SWP_TYPE_BITS", Holds: labtest.Is(64 - 59)},
		{Header: pgtable, Name: "_PAGE_BIT_PRESENT", Holds: labtest.Is(0)},
		{Header: pgtable, Name: "_PAGE_BIT_PROTNONE", Holds: func(bit uint64) bool {
			_, ok := protNone(1 << bit)
			return ok
		}},
	})
}

// isSockName is a Constant's Holds: names calls the constant want.
func isSockName(names []string, want string) func(uint64) bool {
	return func(n uint64) bool { return sockName(names, n) == want }
}
