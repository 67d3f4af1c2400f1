package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/introspect/linux"
)

// Bounds of what is told of a finding's process. A program's size is the guest's
// word, and a sparse file claims much at no cost.
const (
	maxParents   = 32
	maxExeHashed = 256 << 20 // bytes of one program
	maxHashed    = 4 << 30   // bytes of all programs of one scan
)

// Ancestor is a process from which another descends.
type Ancestor struct {
	PID  int
	Comm string
	Exe  string
}

// Subject is what is told of the process that a finding lies in, next to the
// process itself.
type Subject struct {
	// Parents are the process's parent, the parent's parent and so on, as the
	// listing at the begin of the scan has them; at most 32.
	Parents []Ancestor
	// ExeSHA256 is that of the program's file as the guest's page cache has it,
	// in hexadecimal; empty when not all of the file is there.
	ExeSHA256 string
	// ExeProblem says why there is no ExeSHA256.
	ExeProblem string
}

// subjects tells of the processes of one scan. Only what is asked for is read.
type subjects struct {
	g     *linux.Guest
	procs map[int]*linux.Process
	known map[int]*Subject
	left  uint64 // bytes that may still be hashed
}

func newSubjects() *subjects {
	return &subjects{procs: map[int]*linux.Process{}, known: map[int]*Subject{}, left: maxHashed}
}

// of returns what is known of process pid; nil and nil when there is none.
func (s *subjects) of(ctx context.Context, pid int) (*linux.Process, *Subject) {
	p := s.procs[pid]
	if p == nil {
		return nil, nil
	}
	sub := s.known[pid]
	if sub == nil {
		sub = &Subject{Parents: s.parents(p)}
		var err error
		if sub.ExeSHA256, err = s.hash(ctx, p); err != nil {
			sub.ExeProblem = err.Error()
		}
		s.known[pid] = sub
	}
	return p, sub
}

// parents follows the parents of p; a guest may make them a circle.
func (s *subjects) parents(p *linux.Process) []Ancestor {
	out := []Ancestor{}
	seen := map[int]bool{p.PID: true}
	for p = s.procs[p.PPID]; p != nil && !seen[p.PID] && len(out) < maxParents; p = s.procs[p.PPID] {
		seen[p.PID] = true
		out = append(out, Ancestor{PID: p.PID, Comm: p.Comm, Exe: p.Exe})
	}
	return out
}

var (
	errExeSize = errors.New("the program is too large to be hashed")
	errExeGone = errors.New("pages of the program are not in the page cache")
)

// hash returns the SHA-256 of the program of p.
func (s *subjects) hash(ctx context.Context, p *linux.Process) (string, error) {
	c, err := s.g.Exe(ctx, *p)
	if err != nil {
		return "", err
	}
	if c.Size > maxExeHashed || c.Size > s.left {
		return "", fmt.Errorf("%w: %d bytes", errExeSize, c.Size)
	}
	s.left -= c.Size
	h := sha256.New()
	cov, err := c.WriteTo(ctx, h, nil)
	switch {
	case err != nil:
		return "", err
	case cov.PagesMissing > 0:
		return "", fmt.Errorf("%w: %d of %d", errExeGone, cov.PagesMissing, cov.PagesTotal)
	case !cov.Complete():
		return "", cov.Problems.Err()
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
