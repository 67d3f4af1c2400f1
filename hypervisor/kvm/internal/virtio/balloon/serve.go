package balloon

import (
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

// maxFrames is how many frames of one request are looked at; Linux sends 256. To
// give a page back is only a wish, so the rest may be ignored.
const maxFrames = 4096

// Serve is virtio.Kind's.
func (d *Device) Serve(q *virtio.Queue) {
	d.mu.Lock()
	roles := d.roles
	d.mu.Unlock()
	if q.Index() >= len(roles) {
		return
	}
	if roles[q.Index()] == roleStats {
		d.serveStats(q)
		return
	}
	var c ring.Chain
	for q.Wait() {
		for q.Pop(&c) {
			switch roles[q.Index()] {
			case roleInflate:
				d.inflate(&c)
			case roleReporting:
				for _, r := range c.InRanges {
					d.discard(r)
				}
			}
			q.Push(&c, 0)
			q.Flush()
		}
	}
}

// inflate takes the frames that are named in c, neighbours in one piece.
func (d *Device) inflate(c *ring.Chain) {
	var run hypervisor.Range
	var raw [4]byte
	for range maxFrames {
		if c.ReadOut(raw[:]) < len(raw) {
			break
		}
		gpa := hypervisor.PhysAddr(le.Uint32(raw[:])) << pfnShift
		switch {
		case run.Size != 0 && gpa == run.End():
			run.Size += hypervisor.PageSize
		case run.Size != 0 && gpa+hypervisor.PageSize == run.Start: // Linux goes downwards
			run.Start, run.Size = gpa, run.Size+hypervisor.PageSize
		default:
			d.discard(run)
			run = hypervisor.Range{Start: gpa, Size: hypervisor.PageSize}
		}
	}
	d.discard(run)
}

// discard gives back the whole pages in r.
func (d *Device) discard(r hypervisor.Range) {
	start := (r.Start + hypervisor.PageSize - 1) &^ (hypervisor.PageSize - 1)
	end := r.End() &^ (hypervisor.PageSize - 1)
	if start < end && start >= r.Start {
		// It is the host that loses when that fails: its memory stays in use.
		_ = d.mem.Discard(start, uint64(end-start))
	}
}

// serveStats keeps the guest's buffer, as the device has to, until someone asks:
// giving it back is the question. Meanwhile it stays in the available ring, so
// that a saved device has nothing of the guest's.
func (d *Device) serveStats(q *virtio.Queue) {
	var c ring.Chain
	questioned := false // the first buffer answers no question
	for ok := q.Wait(); ok; {
		if !q.Pop(&c) {
			ok = q.Wait()
			continue
		}
		if questioned {
			d.answer(parse(&c))
		}
		for !d.isAsked() && ok {
			q.Unpop(1)
			ok = q.WaitRead(d.wanted.FD()) && q.Pop(&c)
		}
		if ok {
			q.Push(&c, 0)
			q.Flush()
			questioned = true
			ok = q.Wait()
		}
	}
}

func (d *Device) isAsked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// answer tells all who wait.
func (d *Device) answer(s Stats) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats, d.asked = s, false
	d.wanted.Clear()
	close(d.fresh)
	d.fresh = make(chan struct{})
}

func parse(c *ring.Chain) Stats {
	var s Stats
	fields := [statCount]*uint64{
		statSwapIn: &s.SwapIn, statSwapOut: &s.SwapOut, statMajorFaults: &s.MajorFaults, statMinorFaults: &s.MinorFaults,
		statFree: &s.Free, statTotal: &s.Total, statAvailable: &s.Available, statCaches: &s.Caches,
	}
	var raw [statLen]byte
	for range 2 * statCount {
		if c.ReadOut(raw[:]) < len(raw) {
			break
		}
		if tag := le.Uint16(raw[:]); tag < statCount && fields[tag] != nil {
			*fields[tag] = le.Uint64(raw[2:])
		}
	}
	return s
}
