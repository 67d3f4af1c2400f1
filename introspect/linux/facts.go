package linux

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// factTable is a group of facts that only some looks at a guest need: where the
// members of sockets, of files, of the kernel's log lie. It is looked up in the
// guest's type information when it is first asked for (tableOf) and then kept,
// so that no listing pays for what it does not use.
//
// Adding a fact is a field in the table's struct and a line in facts (or in
// symbols). A kernel that has it elsewhere is one more name in that line.
type factTable interface {
	facts() []fact
	symbols() []symbol
	// finish is called once, after the lookup: for spans, sizes of types and
	// values of enums, and for what follows from a member's presence.
	finish(t types)
}

// symbol is one line of the table of the kernel's variables: where its address
// goes (0: this kernel has it not), what its absence means, and the names it
// ever had, the newest first. The first that the kernel has is taken.
type symbol struct {
	to    *hypervisor.VirtAddr
	need  need
	names []string
}

// lookedUp is a factTable after its lookup.
type lookedUp struct {
	once     sync.Once
	table    any
	missing  []string // what of need want this kernel has not
	problems []error
	err      error // of need must
}

// tableOf returns the guest's factTable of type T. What of need want the kernel
// has not is told in cov, which may be nil. The error wraps profile.ErrNoType or
// profile.ErrNoSymbol when something of need must is missing: what the table is
// for cannot be seen in this kernel.
func tableOf[T any, P interface {
	*T
	factTable
}](g *Guest, cov *introspect.Coverage) (P, error) {
	v, _ := g.tables.LoadOrStore(reflect.TypeFor[T](), &lookedUp{})
	l, _ := v.(*lookedUp)
	l.once.Do(func() {
		table := P(new(T))
		l.table = table
		l.lookUp(g, table)
	})
	if l.err != nil {
		return nil, l.err
	}
	if cov != nil {
		for _, m := range l.missing {
			cov.Add("layout", 0, fmt.Errorf("this kernel has no %s", m))
		}
		for _, err := range l.problems {
			cov.Add("layout", 0, err)
		}
	}
	table, _ := l.table.(P)
	return table, nil
}

func (l *lookedUp) lookUp(g *Guest, t factTable) {
	var lost []string
	lost, l.missing, l.problems = lookUpFacts(g.types, t.facts())
	if len(lost) > 0 {
		l.err = fmt.Errorf("%w: %q", profile.ErrNoType, lost)
		return
	}
	for _, s := range t.symbols() {
		ok, err := findSymbol(g.symbol, s)
		switch {
		case err != nil:
			l.problems = append(l.problems, err)
		case ok:
		case s.need == must:
			l.err = fmt.Errorf("%w: %q", profile.ErrNoSymbol, s.names)
			return
		case s.need == want:
			l.missing = append(l.missing, s.names[0])
		}
	}
	slices.Sort(l.missing)
	t.finish(g.types)
}

// lookUpFacts sets every fact that t has, and returns the names of those of need
// must and of need want that it has not, and what cannot be believed.
func lookUpFacts(t types, facts []fact) (lost, missing []string, problems []error) {
	for _, f := range facts {
		got, err := findFact(t, f)
		switch {
		case err == nil:
			*f.to = got
		case !errors.Is(err, profile.ErrNoType):
			problems = append(problems, err)
		}
		if !f.to.ok {
			switch f.need {
			case must:
				lost = append(lost, f.from[0])
			case want:
				missing = append(missing, f.from[0])
			}
		}
	}
	return lost, missing, problems
}

// findSymbol sets s to the address of the first of its names that there is.
func findSymbol(lookup func(string) (hypervisor.VirtAddr, error), s symbol) (ok bool, err error) {
	for _, name := range s.names {
		a, err := lookup(name)
		if err == nil {
			*s.to = a
			return true, nil
		}
		if !errors.Is(err, profile.ErrNoSymbol) {
			return false, fmt.Errorf("symbol %s: %w", name, err)
		}
	}
	return false, nil
}
