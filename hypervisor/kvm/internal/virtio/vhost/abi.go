package vhost

// Requests of linux/vhost.h: _IOC(dir, 0xaf, nr, size).
const (
	setOwner        = 0xaf01
	getFeatures     = 0x8008af00
	setFeatures     = 0x4008af00
	setMemTable     = 0x4008af03
	setVringNum     = 0x4008af10
	setVringAddr    = 0x4028af11
	setVringBase    = 0x4008af12
	getVringBase    = 0xc008af12
	setVringKick    = 0x4008af20
	setVringCall    = 0x4008af21
	netSetBackend   = 0x4008af30
	vsockSetCID     = 0x4008af60
	vsockSetRunning = 0x4004af61
)

type (
	vringState struct{ index, num uint32 } // struct vhost_vring_state
	vringFile  struct {                    // struct vhost_vring_file
		index uint32
		fd    int32
	}
	vringAddr struct { // struct vhost_vring_addr
		index, _               uint32
		desc, used, avail, log uint64
	}
	memoryRegion struct { // struct vhost_memory_region
		guest, size, user, _ uint64
	}
	memoryTable struct { // struct vhost_memory
		count, _ uint32
		regions  [8]memoryRegion
	}
)
