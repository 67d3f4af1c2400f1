package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

type program struct {
	ID       uint32         `json:"id"`
	Type     uint32         `json:"type"`
	Name     string         `json:"name"`
	Tag      string         `json:"tag"`
	LoadTime int64          `json:"load_time"` // ns since boot
	UID      uint32         `json:"uid"`
	Address  uint64         `json:"address"`
	Size     uint32         `json:"size"`
	Count    uint32         `json:"instructions"`
	Maps     []uint32       `json:"maps"`
	Place    map[string]any `json:"place"`
}

type bpfMap struct {
	ID     uint32 `json:"id"`
	Type   uint32 `json:"type"`
	Name   string `json:"name"`
	Key    uint32 `json:"key"`
	Value  uint32 `json:"value"`
	Max    uint32 `json:"max"`
	Flags  uint32 `json:"flags"`
	Frozen bool   `json:"frozen"`
}

type bpfLink struct {
	ID      uint32 `json:"id"`
	Type    uint32 `json:"type"`
	Program uint32 `json:"program"`
}

// progInfo is the beginning of struct bpf_prog_info (include/uapi/linux/bpf.h).
type progInfo struct {
	Type, ID             uint32
	Tag                  [8]byte
	JitedLen, XlatedLen  uint32
	JitedInsns, Xlated   uint64
	LoadTime             uint64
	UID, NrMaps          uint32
	Maps                 uint64
	Name                 [16]byte
	Ifindex, GPL         uint32
	NetnsDev, NetnsIno   uint64
	NrKsyms, NrFuncLens  uint32
	JitedKsyms, FuncLens uint64
}

// objInfo is what BPF_OBJ_GET_INFO_BY_FD takes (union bpf_attr).
type objInfo struct {
	FD, Len uint32
	Info    uint64
}

const bpfObjGetInfoByFD = 15

func progInfoOf(fd int) (program, error) {
	var maps [64]uint32
	var ksyms [64]uint64
	info := progInfo{NrMaps: uint32(len(maps)), Maps: uint64(uintptr(unsafe.Pointer(&maps))), NrKsyms: uint32(len(ksyms)), JitedKsyms: uint64(uintptr(unsafe.Pointer(&ksyms)))}
	attr := objInfo{FD: uint32(fd), Len: uint32(unsafe.Sizeof(info)), Info: uint64(uintptr(unsafe.Pointer(&info)))}
	if _, _, no := syscall.Syscall(unix.SYS_BPF, bpfObjGetInfoByFD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); no != 0 {
		return program{}, no
	}
	p := program{
		ID: info.ID, Type: info.Type, Name: string(bytes.TrimRight(info.Name[:], "\x00")), Tag: fmt.Sprintf("%x", info.Tag), LoadTime: int64(info.LoadTime),
		UID: info.UID, Size: info.JitedLen, Count: info.XlatedLen / 8, Maps: append([]uint32{}, maps[:info.NrMaps]...),
	}
	if info.NrKsyms > 0 {
		p.Address = ksyms[0]
	}
	return p, nil
}

// tell asks the kernel for all that it has.
func (s *scenario) tell() error {
	for id := ebpf.ProgramID(0); ; {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return err
		}
		info, err := progInfoOf(p.FD())
		if err != nil {
			return err
		}
		info.Place = s.want[info.ID]
		s.truth.Programs = append(s.truth.Programs, info)
		p.Close()
	}
	for id := ebpf.MapID(0); ; {
		var err error
		if id, err = ebpf.MapGetNextID(id); errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return err
		}
		info, err := m.Info()
		if err != nil {
			return err
		}
		s.truth.Maps = append(s.truth.Maps, bpfMap{
			ID: uint32(id), Type: uint32(info.Type), Name: info.Name, Key: info.KeySize, Value: info.ValueSize, Max: info.MaxEntries, Flags: uint32(info.Flags),
			Frozen: info.Frozen(),
		})
		m.Close()
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			return err
		}
		s.truth.Links = append(s.truth.Links, bpfLink{ID: uint32(info.ID), Type: uint32(info.Type), Program: uint32(info.Program)})
	}
	return it.Err()
}
