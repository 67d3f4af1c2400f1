package labtest

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/rootkit"
)

// Rootkit returns the module of package rootkit for the cloud kernel of a suite,
// under a name of seven letters, as a file of a guest.
func Rootkit(t testing.TB, suite lab.Suite, path, name string) lab.File {
	t.Helper()
	return RootkitOf(t, suite, lab.Cloud, path, name)
}

// RootkitOf is Rootkit for the kernel of a suite and flavour.
func RootkitOf(t testing.TB, suite lab.Suite, flavour lab.Flavour, path, name string) lab.File {
	t.Helper()
	ko, err := rootkit.Build(t.Context(), suite, flavour)
	check(t, err)
	ko, err = rootkit.Rename(ko, name)
	check(t, err)
	return lab.File{Path: path, Data: ko}
}
