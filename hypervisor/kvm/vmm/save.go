package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/cpustate"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/savefile"
)

// sectionCPU is the processors' part of a saved state; a device's is its name.
const sectionCPU = "processors"

func sectionOf(p part) string { return "device:" + p.name }

// Save is control.Machine's: the whole state goes into to, or with a parent what
// has changed since. The machine stands still meanwhile. From then on the pages
// that are written are noted, so that another save can stand on this one.
func (m *Machine) Save(ctx context.Context, to, parent control.Folder, progress func(control.SaveProgress)) (err error) {
	m.life.Lock()
	defer m.life.Unlock()
	if m.ended() {
		return hypervisor.ErrGone
	}
	m.vm.Stop()
	defer m.vm.Go()
	settle, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := m.vm.Settle(settle); err != nil {
		return fmt.Errorf("a vCPU waits for the answer to a trap: %w", err)
	}
	m.quiesce()
	defer m.unquiesce()

	m.changes.mu.Lock()
	defer m.changes.mu.Unlock()
	changed, base, err := m.since(ctx, parent)
	if err != nil {
		return err
	}
	cfg, err := json.Marshal(m.cfg)
	if err != nil {
		return err
	}
	w, err := savefile.NewWriter(to, cfg, m.mem.Ranges(), base)
	if err != nil {
		return err
	}
	defer w.Abandon()
	if err := m.saveState(w); err != nil {
		return err
	}
	total := hypervisor.TotalSize(changed)
	if err := w.Memory(changed, m.viewForSave(ctx), func(done uint64) {
		if progress != nil {
			progress(control.SaveProgress{Done: done, Total: total})
		}
	}); err != nil {
		return err
	}
	if _, err := w.Commit(); err != nil {
		return err
	}
	// Only now: a save that failed leaves the older state to stand on.
	if err := m.track(ctx); err != nil && !errors.Is(err, hypervisor.ErrNotSupported) {
		return err
	}
	m.changes.saves, m.changes.savedID = m.pages(), w.ID()
	return nil
}

// since returns the pages to save and the manifest that they stand on.
func (m *Machine) since(ctx context.Context, parent control.Folder) ([]hypervisor.Range, *savefile.Manifest, error) {
	if parent == nil {
		return m.mem.Ranges(), nil, nil
	}
	base, err := savefile.ReadManifest(parent)
	if err != nil {
		return nil, nil, fmt.Errorf("parent: %w", err)
	}
	if m.changes.saves == nil || m.changes.savedID != base.ID {
		return nil, nil, fmt.Errorf("%w: this VM's changes are known since its last save or its restore, and that is another state: name that one, or save it whole", savefile.ErrParent)
	}
	if err := m.collect(ctx); err != nil {
		return nil, nil, err
	}
	return m.rangesOf(m.changes.saves), base, nil
}

// viewForSave is guest memory as the guest wrote it: without our breakpoints.
func (m *Machine) viewForSave(ctx context.Context) func(hypervisor.PhysAddr, uint64) ([]byte, error) {
	buf := make([]byte, 1<<20)
	return func(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		b := buf[:size]
		_, err := m.ReadPhys(b, gpa)
		return b, err
	}
}

func (m *Machine) saveState(w *savefile.Writer) error {
	cpus, err := cpustate.Capture(m.vm, m.msrs)
	if err != nil {
		return err
	}
	b, err := json.Marshal(cpus)
	if err != nil {
		return err
	}
	w.Section(sectionCPU, b)
	for _, p := range m.parts {
		b, err := p.saved.SaveState()
		if err != nil {
			return fmt.Errorf("state of %s: %w", p.name, err)
		}
		w.Section(sectionOf(p), b)
	}
	return nil
}

func (m *Machine) quiesce() {
	for _, p := range m.parts {
		if p.works != nil {
			p.works.Quiesce()
		}
	}
}

func (m *Machine) unquiesce() {
	for _, p := range m.parts {
		if p.works != nil {
			p.works.Resume()
		}
	}
}

// SavedConfig returns what the machine that is saved in a folder is made of.
func SavedConfig(f control.Folder) (*Config, error) {
	manifest, err := savefile.ReadManifest(f)
	if err != nil {
		return nil, err
	}
	var c Config
	if err := json.Unmarshal(manifest.Machine, &c); err != nil {
		return nil, fmt.Errorf("%w: its machine: %w", savefile.ErrDamaged, err)
	}
	return &c, c.Check()
}

// Restore gives a machine that New made of the same Config, and that has not been
// started, the state in folders: that of the state and then of its parents, the
// newest first. The machine is paused then; Start is not called.
func (m *Machine) Restore(ctx context.Context, folders []control.Folder, progress func(control.SaveProgress)) error {
	m.life.Lock()
	defer m.life.Unlock()
	files := make([]savefile.Folder, len(folders))
	for i, f := range folders {
		files[i] = f
	}
	chain, err := savefile.Chain(files)
	if err != nil {
		return err
	}
	newest := chain[0]
	if rs := m.mem.Ranges(); len(rs) != len(newest.Ranges) || hypervisor.TotalSize(rs) != hypervisor.TotalSize(newest.Ranges) {
		return fmt.Errorf("the state is of a VM with %d MiB of memory, this one has %d MiB", hypervisor.TotalSize(newest.Ranges)>>20, m.mem.Size()>>20)
	}
	var total, before uint64
	for _, c := range chain {
		total += uint64(max(c.MemoryBytes, 0))
	}
	for i := len(chain) - 1; i >= 0; i-- {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := savefile.ReadMemory(files[i], chain[i], m.mem.View, func(done int64) {
			if progress != nil {
				progress(control.SaveProgress{Done: before + uint64(done), Total: total})
			}
		}); err != nil {
			return err
		}
		before += uint64(chain[i].MemoryBytes)
	}
	if err := m.restoreState(files[0], newest); err != nil {
		return err
	}
	m.changes.mu.Lock()
	defer m.changes.mu.Unlock()
	if err := m.track(ctx); err == nil {
		m.changes.saves, m.changes.savedID = m.pages(), newest.ID
	}
	m.paused.Store(true)
	m.vm.Stop()
	m.run()
	return nil
}

func (m *Machine) restoreState(f savefile.Folder, manifest *savefile.Manifest) error {
	sections, err := savefile.ReadState(f, manifest)
	if err != nil {
		return err
	}
	cpus, err := cpustate.Decode(sections[sectionCPU], m.cfg.CPUs)
	if err != nil {
		return err
	}
	if len(sections) != len(m.parts)+1 {
		return fmt.Errorf("the state has %d devices, this machine %d: restore it with the devices that it was saved with", len(sections)-1, len(m.parts))
	}
	for _, p := range m.parts {
		b, ok := sections[sectionOf(p)]
		if !ok {
			return fmt.Errorf("the state has no %s: restore it with the devices that it was saved with", p.name)
		}
		if err := p.saved.RestoreState(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return cpus.Apply(m.vm)
}
