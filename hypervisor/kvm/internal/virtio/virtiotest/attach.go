package virtiotest

import (
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
)

// Attach puts a device of a kind on the bus, lets it go, and returns its driver.
// It is closed at the end of the test.
func (m *Machine) Attach(t testing.TB, kind virtio.Kind) (*virtio.Device, *Driver) {
	t.Helper()
	dev, err := virtio.New(m.Host, virtio.Resources{Memory: m.Mem, Doorbells: m}, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Errorf("close the device: %v", err)
		}
	})
	dev.Resume()
	return dev, m.Find(t, dev.Slot())
}
