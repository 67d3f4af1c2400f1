package disk

import "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/qcow2"

// qcow is a disk in a qcow2 image.
type qcow struct {
	*qcow2.Image
	id string
}

func newQcow2(l layer, o Options, below qcow2.Backing) (Disk, error) {
	im, err := qcow2.Open(l.file, l.header, o.ReadOnly, below)
	if err != nil {
		return nil, err
	}
	return &qcow{im, o.ID}, nil
}

func (q *qcow) ID() string { return q.id }
