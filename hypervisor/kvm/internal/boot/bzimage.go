package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// Offsets in struct boot_params, which holds the setup header of the file at the
// file's own offset (Documentation/arch/x86/boot.rst, zero-page.rst;
// arch/x86/include/uapi/asm/bootparam.h).
const (
	offACPIRSDP        = 0x070
	offExtRamdiskImage = 0x0c0
	offExtRamdiskSize  = 0x0c4
	offExtCmdLinePtr   = 0x0c8
	offE820Entries     = 0x1e8
	offSetupSects      = 0x1f1
	offHeaderJump      = 0x200 // its second byte tells where the header ends
	offVersion         = 0x206
	offTypeOfLoader    = 0x210
	offLoadFlags       = 0x211
	offRamdiskImage    = 0x218
	offRamdiskSize     = 0x21c
	offHeapEndPtr      = 0x224
	offCmdLinePtr      = 0x228
	offInitrdAddrMax   = 0x22c
	offKernelAlignment = 0x230
	offXLoadFlags      = 0x236
	offCmdLineSize     = 0x238
	offPrefAddress     = 0x258
	offInitSize        = 0x260
	offE820Table       = 0x2d0
	sizeE820Entry      = 20
	maxE820Entries     = 128
	sizeBootParams     = 4096

	xlfKernel64              = 1 << 0 // XLF_KERNEL_64
	xlfAbove4G               = 1 << 1 // XLF_CAN_BE_LOADED_ABOVE_4G
	loadedHigh               = 1 << 0 // LOADED_HIGH
	loaderUndefined          = 0xff
	minProtocol              = 0x020c // xloadflags
	entry64                  = 0x200
	headerAt                 = 0x1f1
	initrdMaxWithout4G       = 0x7fff_ffff
	mostOfKernel       int64 = 1 << 30
)

// loadBzImage follows "64-bit boot protocol" of boot.rst. It decompresses the
// kernel itself where it can, which is quicker than what the guest would do.
func loadBzImage(mem Memory, c Config, head []byte) (regs hypervisor.Registers, err error) {
	le := binary.LittleEndian
	if v := le.Uint16(head[offVersion:]); v < minProtocol {
		return regs, fmt.Errorf("%w: boot protocol %d.%02d: Linux 3.8 or later is needed", ErrNotKernel, v>>8, v&0xff)
	}
	flags := le.Uint16(head[offXLoadFlags:])
	if flags&xlfKernel64 == 0 {
		return regs, fmt.Errorf("%w: this kernel has no 64-bit entry: want one for x86-64", ErrNotKernel)
	}
	setup := int64(head[offSetupSects])
	if setup == 0 {
		setup = 4
	}
	setup = (setup + 1) * 512
	size := c.Kernel.Size - setup
	if size <= 0 || size > mostOfKernel {
		return regs, fmt.Errorf("%w: %d bytes behind %d of setup: the file is cut off", ErrNotKernel, size, setup)
	}
	load := hypervisor.PhysAddr(le.Uint64(head[offPrefAddress:]))
	need := max(uint64(le.Uint32(head[offInitSize:])), uint64(size))
	if load < layout.Megabyte || load > 1<<40 || need > uint64(mostOfKernel) {
		return regs, fmt.Errorf("%w: it wants to be loaded at %v and to have %d bytes there", ErrNotKernel, load, need)
	}
	end := load + hypervisor.PhysAddr(need)
	if end > lowRAM(mem) {
		return regs, fmt.Errorf("%w: the kernel alone needs memory up to %v: give it at least %d MiB", ErrMemory, end, uint64(end)>>20+1)
	}
	limit := hypervisor.PhysAddr(le.Uint32(head[offInitrdAddrMax:])) + 1
	if flags&xlfAbove4G == 0 {
		limit = min(limit, initrdMaxWithout4G+1)
	}
	var p *place
	var entry hypervisor.PhysAddr
	if !c.GuestDecompresses {
		room := min(limit, lowRAM(mem))
		room -= min(room, hypervisor.PhysAddr(c.Initrd.Size+hypervisor.PageSize)) // it is put behind
		entry, p, err = unpack(mem, c, head, setup, load, room, need)
	}
	if c.GuestDecompresses || err != nil {
		// The kernel says for itself what is wrong with its payload.
		p, entry = &place{phys: load}, load+entry64
		if err := read(mem, c.Kernel, setup, size, load); err != nil {
			return regs, fmt.Errorf("read kernel: %w", err)
		}
	}
	end = p.phys + hypervisor.PhysAddr(need)

	params := make([]byte, sizeBootParams)
	headerEnd := min(0x202+int(head[offHeaderJump+1]), offE820Table, len(head))
	copy(params[headerAt:], head[headerAt:headerEnd])
	initrd, err := placeInitrd(mem, c.Initrd, (end+hypervisor.PageSize-1)&^(hypervisor.PageSize-1), limit)
	if err != nil {
		return regs, err
	}
	if most := le.Uint32(head[offCmdLineSize:]); uint64(len(c.CommandLine)) > uint64(min(most, 1<<16)) {
		return regs, fmt.Errorf("the command line has %d bytes, this kernel takes %d", len(c.CommandLine), most)
	}
	if err := put(mem, append([]byte(c.CommandLine), 0), layout.CommandLine); err != nil {
		return regs, err
	}
	params[offTypeOfLoader] = loaderUndefined
	params[offLoadFlags] |= loadedHigh
	if p.kaslr {
		params[offLoadFlags] |= kaslrFlag // else the kernel leaves its own mappings where they are
	}
	le.PutUint16(params[offHeapEndPtr:], 0xfe00)
	le.PutUint32(params[offCmdLinePtr:], uint32(layout.CommandLine))
	le.PutUint64(params[offACPIRSDP:], uint64(c.RSDP))
	if initrd != 0 {
		le.PutUint32(params[offRamdiskImage:], uint32(initrd))
		le.PutUint32(params[offRamdiskSize:], uint32(c.Initrd.Size))
		le.PutUint32(params[offExtRamdiskImage:], uint32(initrd>>32))
		le.PutUint32(params[offExtRamdiskSize:], uint32(c.Initrd.Size>>32))
	}
	table := memoryMap(mem)
	params[offE820Entries] = byte(len(table))
	for i, e := range table {
		b := params[offE820Table+i*sizeE820Entry:]
		le.PutUint64(b, uint64(e.start))
		le.PutUint64(b[8:], e.size)
		le.PutUint32(b[16:], e.kind)
	}
	if err := put(mem, params, layout.BootParams); err != nil {
		return regs, err
	}
	regs, err = longMode(mem)
	regs.RIP = hypervisor.VirtAddr(entry)
	regs.RSI = uint64(layout.BootParams)
	return regs, err
}
