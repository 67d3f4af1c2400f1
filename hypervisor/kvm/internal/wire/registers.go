package wire

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// general returns r's fields of hypervisor.GroupGeneral but RIP, in their order.
func general(r *hypervisor.Registers) [17]*uint64 {
	return [...]*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RBP, &r.RSP,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15, &r.RFLAGS,
	}
}

func segments(r *hypervisor.Registers) [8]*hypervisor.Segment {
	return [...]*hypervisor.Segment{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS, &r.LDT, &r.TR}
}

func control(r *hypervisor.Registers) [5]*uint64 {
	return [...]*uint64{&r.CR0, &r.CR2, &r.CR3, &r.CR4, &r.EFER}
}

func msrs(r *hypervisor.Registers) [9]*uint64 {
	return [...]*uint64{
		&r.KernelGSBase, &r.STAR, &r.LSTAR, &r.CSTAR, &r.SFMASK,
		&r.SysenterCS, &r.SysenterESP, &r.SysenterEIP, &r.TSCAux,
	}
}

// AppendRegisters writes r behind b: only the groups that are valid.
func AppendRegisters(b []byte, r *hypervisor.Registers) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(int32(r.VCPU)))
	b = append(b, byte(r.Valid))
	if r.Valid.Has(hypervisor.GroupGeneral) {
		b = le.AppendUint64(b, uint64(r.RIP))
		for _, p := range general(r) {
			b = le.AppendUint64(b, *p)
		}
	}
	if r.Valid.Has(hypervisor.GroupSegments) {
		for _, s := range segments(r) {
			b = le.AppendUint16(b, s.Selector)
			b = le.AppendUint64(b, s.Base)
			b = le.AppendUint32(b, s.Limit)
			b = le.AppendUint16(b, s.Attributes)
		}
		for _, t := range [...]*hypervisor.Table{&r.GDT, &r.IDT} {
			b = le.AppendUint64(b, uint64(t.Base))
			b = le.AppendUint16(b, t.Limit)
		}
	}
	if r.Valid.Has(hypervisor.GroupControl) {
		for _, p := range control(r) {
			b = le.AppendUint64(b, *p)
		}
	}
	if r.Valid.Has(hypervisor.GroupMSR) {
		for _, p := range msrs(r) {
			b = le.AppendUint64(b, *p)
		}
	}
	return b
}

func (r *reader) registers() (g hypervisor.Registers) {
	g.VCPU = int(int32(r.u32()))
	g.Valid = hypervisor.RegisterSet(r.u8())
	const all = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl | hypervisor.GroupMSR
	if g.Valid&^all != 0 {
		r.bad = true
		return g
	}
	if g.Valid.Has(hypervisor.GroupGeneral) {
		g.RIP = hypervisor.VirtAddr(r.u64())
		for _, p := range general(&g) {
			*p = r.u64()
		}
	}
	if g.Valid.Has(hypervisor.GroupSegments) {
		for _, s := range segments(&g) {
			*s = hypervisor.Segment{Selector: r.u16(), Base: r.u64(), Limit: r.u32(), Attributes: r.u16()}
		}
		for _, t := range [...]*hypervisor.Table{&g.GDT, &g.IDT} {
			*t = hypervisor.Table{Base: hypervisor.VirtAddr(r.u64()), Limit: r.u16()}
		}
	}
	if g.Valid.Has(hypervisor.GroupControl) {
		for _, p := range control(&g) {
			*p = r.u64()
		}
	}
	if g.Valid.Has(hypervisor.GroupMSR) {
		for _, p := range msrs(&g) {
			*p = r.u64()
		}
	}
	return g
}

// ParseRegisters reads the registers of one or several vCPUs, one behind the
// other.
func ParseRegisters(b []byte) ([]hypervisor.Registers, error) {
	r := reader{b: b}
	var out []hypervisor.Registers
	for len(r.b) > 0 && !r.bad {
		out = append(out, r.registers())
	}
	if err := r.end("registers"); err != nil {
		return nil, err
	}
	return out, nil
}
