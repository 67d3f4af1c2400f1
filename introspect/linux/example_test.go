package linux_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// A memory file is opened by its driver, and is then a guest as any other.
func ExampleOpen() {
	ctx := context.Background()
	vm, err := image.New(image.Options{}).Open(ctx, "/evidence/web-1.lime")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	guest, err := linux.Open(ctx, vm, linux.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for p, err := range guest.EachProcess(ctx, linux.ProcessOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(p.PID, p.Comm)
	}
}

func ExampleGuest_EachProcess() {
	guest := linux.NewFakeGuest(3) // as linux.Open returns it
	for p, err := range guest.EachProcess(context.Background(), linux.ProcessOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s %s %q hidden=%t\n", p.PID, p.Comm, p.Exe, p.Args, p.Hidden)
	}
	// Output:
	// 1 proc-1 /usr/bin-1 ["prog" "--flag" "a\xffb" "" "last"] hidden=false
	// 2 proc-2 /usr/bin-2 ["prog" "--flag" "a\xffb" "" "last"] hidden=false
	// 3 proc-3 /usr/bin-3 ["prog" "--flag" "a\xffb" "" "last"] hidden=false
}

// A guest that lies about its list of processes: what could be seen is given,
// and then what could not.
func ExampleGuest_EachProcess_incomplete() {
	guest := linux.BreakFakeGuest(3)
	for p, err := range guest.EachProcess(context.Background(), linux.ProcessOptions{}) {
		var missed *introspect.IncompleteError
		switch {
		case errors.As(err, &missed):
			fmt.Println("missed:", missed.Problems[0].What)
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Println(p.PID, p.Comm, p.SeenIn)
		}
	}
	// Output:
	// 1 proc-1 [tasks pid_index cgroup]
	// 2 proc-2 [tasks pid_index cgroup]
	// 3 proc-3 [tasks pid_index cgroup]
	// missed: list of processes, forward
}

func ExampleGuest_EachModule() {
	guest := linux.NewFakeGuest(1)
	for m, err := range guest.EachModule(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(m.Name, m.Base, m.Size)
	}
	// Output:
	// alpha 0xffffffffc0000000 3072
	// beta 0xffffffffc0001000 3072
}

func ExampleGuest_EachVMA() {
	ctx := context.Background()
	guest := linux.NewFakeGuest(1)
	for p, err := range guest.EachProcess(ctx, linux.ProcessOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		for v, err := range guest.EachVMA(ctx, p) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(v.Start, v.End, v.Perms, v.Path)
		}
	}
	// Output:
	// 0x400000 0x402000 r-xp /usr/bin-1
	// 0x7ffd00000000 0x7ffd00021000 rw-p [stack]
}
