package qcow2

// zeroChunk is how much is written at once where zeros have to be written.
const zeroChunk = 64 << 10

// Discard gives back the space of a range where that is simple: it reads as
// zeros, or as before. Space goes back to the host by a hole in the image's
// file; the cluster stays the guest's.
func (im *Image) Discard(off, n uint64) error {
	return im.zero(off, n, func(off, n uint64, x extent) (uint64, error) {
		switch {
		case x.kind == kindData && x.copied:
			_, err := im.punch(x)
			return x.n, err
		case x.kind == kindData || x.kind == kindCompressed:
			if size, err := im.forget(off, x); size > 0 || err != nil {
				return size, err
			}
			return x.n, nil
		}
		im.mu.Unlock()
		return x.n, nil
	})
}

// WriteZeroes makes a range read as zeros. With unmap its space may go back to
// the host.
func (im *Image) WriteZeroes(off, n uint64, unmap bool) error {
	return im.zero(off, n, func(off, n uint64, x extent) (uint64, error) {
		switch {
		case x.kind == kindData && x.copied:
			err := im.checkPlace(x.host, x.n)
			im.mu.Unlock()
			if err != nil {
				return 0, err
			}
			return x.n, im.file.WriteZeroes(x.host, x.n, unmap)
		case x.kind == kindZero || x.kind == kindNone && im.inBacking(off, x.n) == 0:
			im.mu.Unlock()
			return x.n, nil
		}
		if size, err := im.forget(off, x); size > 0 || err != nil {
			return size, err
		}
		// Up to the next whole cluster, which need not be written.
		size := min(x.n, zeroChunk)
		if in := off & (im.cluster - 1); im.canForget() {
			size = min(size, im.cluster-in)
		}
		return size, im.write([][]byte{make([]byte, size)}, off, size)
	})
}

// zero calls step with im.mu held for each run of bytes in turn; step gives it
// back, and returns how many bytes it has dealt with.
func (im *Image) zero(off, n uint64, step func(off, n uint64, x extent) (uint64, error)) error {
	turn, err := im.enter(off, n, true)
	if err != nil {
		return err
	}
	defer im.leave(turn)
	for done := uint64(0); done < n; {
		if err := im.lockForChange(); err != nil {
			return err
		}
		if im.waitFor((off + done) >> im.header.ClusterBits) {
			continue
		}
		x, err := im.lookup(off+done, n-done)
		if err != nil {
			im.mu.Unlock()
			return err
		}
		size, err := step(off+done, n-done, x)
		if err != nil {
			return err
		}
		done += size
	}
	return nil
}

func (im *Image) punch(x extent) (bool, error) {
	err := im.checkPlace(x.host, x.n)
	im.mu.Unlock()
	if err != nil {
		return false, err
	}
	return im.file.Punch(x.host, x.n)
}

// canForget reports whether a cluster can be made zeros by its entry alone.
func (im *Image) canForget() bool { return im.header.Version >= 3 || im.backing == nil }

// forget makes the whole clusters from off on zeros by their entries, and
// returns how many bytes that were: 0 when there is none, or version 2 has a
// backing file that would show. im.mu is held; forget gives it back.
func (im *Image) forget(off uint64, x extent) (uint64, error) {
	defer im.mu.Unlock()
	bits := im.header.ClusterBits
	first := off >> bits
	end := off + x.n
	if end == im.header.Size {
		end = (end + im.cluster - 1) &^ (im.cluster - 1)
	}
	if off&(im.cluster-1) != 0 || end>>bits == first || !im.canForget() {
		return 0, nil
	}
	perPage := im.cache.size / 8
	n := min(end>>bits-first, perPage-first%perPage)
	for _, c := range im.busy {
		if c.first > first {
			n = min(n, c.first-first)
		}
	}
	if err := im.ownTable(first >> im.inL2); err != nil {
		return 0, err
	}
	e := uint64(0)
	if im.header.Version >= 3 {
		e = entryZero
	}
	return min(n<<bits, x.n), im.point(first, n, e)
}
