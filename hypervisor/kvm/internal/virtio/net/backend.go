package net

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/vhost"
)

// backend moves packets in the kernel.
type backend struct {
	vhost    *vhost.Backend
	tap      int
	features uint64 // that the kernel has

	mu      sync.Mutex
	agreed  uint64
	queues  []*virtio.Queue // nil: it is not used
	rings   []vhost.Queue
	release []func()
	going   bool // the device is not paused
	up      bool // the link
	running bool
}

func newBackend(o Options) (*backend, error) {
	if o.Memory == nil {
		return nil, errors.New("vhost-net: no memory was given")
	}
	v, err := vhost.New(o.VHost, o.Memory)
	if err != nil {
		return nil, err
	}
	b := &backend{vhost: v, tap: int(o.Tap.Fd()), up: true}
	if b.features, err = v.Features(); err != nil {
		return nil, err
	}
	if b.features&virtio.FeatureVersion1 == 0 {
		return nil, fmt.Errorf("vhost-net: features %#x: virtio 1 is missing", b.features)
	}
	return b, nil
}

// start takes the queues, to run from resume on. It leaves them to Serve when the
// guest has no vector for them: the kernel has no way to its pin.
func (b *backend) start(features uint64, queues []*virtio.Queue) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var calls []int
	for _, q := range queues {
		fd, release, ok := q.Call()
		if !ok {
			b.letGo()
			return nil
		}
		calls, b.release = append(calls, fd), append(b.release, release)
	}
	b.agreed, b.queues, b.rings = features&b.features, queues, nil
	for i, q := range queues {
		r := q.Take()
		b.rings = append(b.rings, vhost.Queue{Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used, Next: r.Next, Kick: r.Kick, Call: calls[i]})
	}
	return nil
}

func (b *backend) letGo() {
	for _, f := range b.release {
		f()
	}
	b.release, b.queues, b.rings = nil, nil, nil
}

func (b *backend) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.letGo()
}

func (b *backend) resume(up bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.going, b.up = true, up
	return b.settle()
}

func (b *backend) pause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.going = false
	// It can fail at nothing: it only stops.
	_ = b.settle()
}

// link cuts and mends. A kernel that does not take its queues back is found at
// the next pause.
func (b *backend) link(up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up = up
	_ = b.settle()
}

// settle makes it run or not. Called with mu held.
func (b *backend) settle() error {
	on := b.going && b.up && b.queues != nil
	switch {
	case on && !b.running:
		if err := b.vhost.Setup(b.agreed); err != nil {
			return err
		}
		for i, r := range b.rings {
			if err := b.vhost.SetQueue(i, r); err != nil {
				return err
			}
		}
		for i := range b.rings {
			if err := b.vhost.SetNet(i, b.tap); err != nil {
				return errors.Join(err, b.halt())
			}
		}
		b.running = true
	case !on && b.running:
		return b.halt()
	}
	return nil
}

func (b *backend) halt() error {
	b.running = false
	var errs []error
	for i := range b.rings {
		errs = append(errs, b.vhost.SetNet(i, -1))
	}
	for i := range b.rings {
		next, err := b.vhost.Stopped(i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b.rings[i].Next = next
		b.queues[i].Returned(next)
	}
	b.vhost.DirtiedAll()
	return errors.Join(errs...)
}
