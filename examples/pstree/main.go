// Command pstree prints the process tree of a Linux guest's memory file.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func main() {
	if err := pstree(context.Background(), os.Stdout, os.Args[len(os.Args)-1]); err != nil {
		log.Fatal(err)
	}
}

func pstree(ctx context.Context, w io.Writer, path string) (incomplete error) {
	vm, err := image.New(image.Options{}).Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = vm.Close() }()
	guest, err := linux.Open(ctx, vm, linux.Options{})
	if err != nil {
		return err
	}
	children := map[int][]linux.Process{}
	for p, err := range guest.EachProcess(ctx, linux.ProcessOptions{}) {
		if err != nil {
			incomplete = err // what there is is printed all the same
			break
		}
		children[p.PPID] = append(children[p.PPID], p)
	}
	show(w, children, 0, 0)
	return incomplete
}

// show prints the children of pid, each of them once: a guest may lie.
func show(w io.Writer, children map[int][]linux.Process, pid, depth int) {
	kids := children[pid]
	delete(children, pid)
	for _, p := range kids {
		fmt.Fprintf(w, "%s%d %q\n", strings.Repeat("  ", depth), p.PID, p.Comm)
		show(w, children, p.PID, depth+1)
	}
}
