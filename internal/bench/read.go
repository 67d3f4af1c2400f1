package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// readFigures compares reads of a large mapping through introspection with
// memcpy, on the anonymous memory of one guest process (4 KiB pages) in the
// guest's RAM file.
func readFigures(ctx context.Context, o options, ram string) (_ []figure, err error) {
	vm, err := image.New(image.Options{}).Open(ctx, ram)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := vm.Close(); err == nil {
			err = cerr
		}
	}()
	g, err := linux.Open(ctx, vm, linux.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	space, start, size, err := largestMapping(ctx, g)
	if err != nil {
		return nil, err
	}
	buf, src := make([]byte, size), make([]byte, size)
	if _, err := space.ReadVirt(src, start); err != nil {
		return nil, fmt.Errorf("read the mapping at %v: %w", start, err)
	}
	var ratios, reads, copies []float64
	for range o.runs + 1 {
		t0 := time.Now()
		if _, err := space.ReadVirt(buf, start); err != nil {
			return nil, err
		}
		read := time.Since(t0)
		t0 = time.Now()
		copy(buf, src)
		cp := time.Since(t0)
		ratios = append(ratios, cp.Seconds()/read.Seconds())
		reads = append(reads, float64(size)/read.Seconds()/1e9)
		copies = append(copies, float64(size)/cp.Seconds()/1e9)
	}
	perSecond, err := randomReads(space, start, size)
	if err != nil {
		return nil, err
	}
	return []figure{
		{
			Name: "virtual reads of a large mapping: over memcpy's", Value: median(ratios[1:]), Unit: "x", Limit: 0.7,
			Detail: fmt.Sprintf("%d MiB of 4 KiB pages: %.1f GB/s, memcpy %.1f GB/s", size>>20, median(reads[1:]), median(copies[1:])),
		},
		{Name: "random 8-byte virtual reads, warm TLB", Value: perSecond / 1e6, Unit: "M/s", Limit: 1, Detail: "one goroutine, over the same mapping"},
	}, nil
}

// largestMapping returns the largest run of present pages of any process.
func largestMapping(ctx context.Context, g *linux.Guest) (best *paging.AddressSpace, start hypervisor.VirtAddr, size uint64, err error) {
	list, err := g.Processes(ctx, linux.ProcessOptions{})
	if err != nil {
		return nil, 0, 0, err
	}
	for _, p := range list.Processes {
		if !p.HasMemory() {
			continue
		}
		space, err := g.ProcessSpace(p)
		if err != nil {
			return nil, 0, 0, err
		}
		var runStart, runEnd hypervisor.VirtAddr
		for m, err := range space.Mappings(ctx, 0, 1<<47) {
			if err != nil {
				continue // a hole: it ends the run by itself
			}
			if m.Virt != runEnd {
				runStart = m.Virt
			}
			runEnd = m.Virt + hypervisor.VirtAddr(m.Size)
			if n := uint64(runEnd - runStart); n > size {
				best, start, size = space, runStart, n
			}
		}
	}
	if size < 64<<20 {
		return nil, 0, 0, fmt.Errorf("the largest mapping has %d bytes only: the guest was not filled", size)
	}
	return best, start, size, nil
}

func randomReads(space *paging.AddressSpace, start hypervisor.VirtAddr, size uint64) (float64, error) {
	const n = 1 << 21
	r := rand.New(rand.NewPCG(1, 2))
	addrs := make([]hypervisor.VirtAddr, n)
	for i := range addrs {
		addrs[i] = start + hypervisor.VirtAddr(r.Uint64N(size-8)&^7)
	}
	var b [8]byte
	var sum uint64
	var took time.Duration
	for range 2 { // the first round warms the TLB
		t0 := time.Now()
		for _, a := range addrs {
			if _, err := space.ReadVirt(b[:], a); err != nil {
				return 0, err
			}
			sum += binary.LittleEndian.Uint64(b[:])
		}
		took = time.Since(t0)
	}
	if sum == 0 {
		return 0, fmt.Errorf("the mapping at %v holds zeros only: the guest was not filled", start)
	}
	return n / took.Seconds(), nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
