package linux

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// guestKind is what kernel a guest has, and how many levels of page tables.
type guestKind struct {
	suite   lab.Suite
	flavour lab.Flavour
	la57    bool
}

func (k guestKind) String() string {
	s := string(k.suite)
	if k.flavour != lab.Cloud {
		s += "-" + string(k.flavour)
	}
	if k.la57 {
		s += "-la57"
	}
	return s
}

// kernel returns the kernel of guests of this kind.
func (k guestKind) kernel(t testing.TB) *lab.Kernel {
	t.Helper()
	return labtest.KernelOf(t, k.suite, k.flavour)
}

// modules returns names, behind those of optional that are modules of the kernel
// and not built in: guests have no modprobe, so what the kernel would ask for has
// to be there. The last of optional is loaded first.
func (k guestKind) modules(t testing.TB, names []string, optional ...string) []string {
	t.Helper()
	for _, name := range optional {
		_, err := k.kernel(t).Modules(t.Context(), name)
		switch {
		case err == nil:
			names = append([]string{name}, names...)
		case !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
	}
	return names
}

// cloudGuest is a guest with a small kernel, most of which is built in.
func cloudGuest(suite lab.Suite) guestKind { return guestKind{suite: suite, flavour: lab.Cloud} }

// guestKinds are the guests that are compared with their own word: all suites
// with their cloud kernels and four levels of page tables, and nightlySuites with
// generic ones, which have more as modules, and five levels.
func guestKinds() []guestKind {
	var kinds []guestKind
	for _, suite := range lab.Suites() {
		kinds = append(kinds, cloudGuest(suite))
	}
	for _, suite := range nightlySuites() {
		kinds = append(kinds, guestKind{suite: suite, flavour: lab.Generic, la57: true})
	}
	return kinds
}

// nightlySuites are the suites of what takes long: one, or, with
// $VANTAGE_NIGHTLY, all.
func nightlySuites() []lab.Suite {
	if v := os.Getenv("VANTAGE_NIGHTLY"); v != "" && v != "0" {
		return lab.Suites()
	}
	return []lab.Suite{lab.Trixie}
}
