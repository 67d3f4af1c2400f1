package labtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// pool holds the guests that a test binary's tests share. It belongs to the
// process, as TestMain does.
type pool struct {
	mu      sync.Mutex
	running bool
	guests  map[string]*sharedGuest
}

type sharedGuest struct {
	once  sync.Once
	guest *lab.Guest
	err   error
}

// guests is the one pool of the test binary: Go gives tests no other place for
// what outlives a test. It is empty outside Main.
var guests = pool{guests: map[string]*sharedGuest{}}

// Main runs a package's tests and then closes the guests that they shared. It
// fails the run when goroutines or file descriptors are left. It does not
// return.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do: it returns the exit status.
func Run(m *testing.M) int {
	before := openFiles()
	status := closeGuests(runTests(m))
	if status == 0 { // a test that failed half-way leaves things behind; its failure says more
		status = leaks(os.Stderr, before)
	}
	return status
}

func runTests(m *testing.M) int {
	guests.mu.Lock()
	guests.running = true
	guests.mu.Unlock()
	return m.Run()
}

// closeGuests closes the shared guests and returns status, or another one when
// a guest could not be closed.
func closeGuests(status int) int {
	guests.mu.Lock()
	defer guests.mu.Unlock()
	guests.running = false
	for key, s := range guests.guests {
		if s.guest != nil {
			if err := s.guest.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "labtest: close guest: %v\n", err)
				status = max(status, 1)
			}
		}
		delete(guests.guests, key)
	}
	return status
}

// Shared returns the guest with the given configuration, booted when the first
// test asks for it and closed by Main. Tests must leave it as they found it:
// running, with no processes of theirs. The package's TestMain must call Main.
func Shared(t testing.TB, cfg lab.Config) *lab.Guest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	named := cfg
	named.Kernel = nil // a pointer: each caller may have its own
	key := fmt.Sprintf("%s %+v", cfg.Kernel.Image, named)
	guests.mu.Lock()
	if !guests.running {
		guests.mu.Unlock()
		t.Fatal("labtest.Shared: the package's TestMain does not call labtest.Main")
	}
	s := guests.guests[key]
	if s == nil {
		s = &sharedGuest{}
		guests.guests[key] = s
	}
	guests.mu.Unlock()
	// Not t's context: the guest outlives this test.
	s.once.Do(func() { s.guest, s.err = lab.Boot(context.Background(), cfg) })
	check(t, s.err)
	t.Cleanup(func() { showConsole(t, s.guest) })
	return s.guest
}
