package linux

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// rbTree makes a tree of seven nodes in a fake guest, and returns where its root
// and its nodes lie, in the tree's order.
func rbTree(f *fake) (root hypervisor.VirtAddr, nodes []hypervisor.VirtAddr) {
	root = f.alloc(8, 8)
	for range 7 {
		nodes = append(nodes, f.object("rb_node"))
	}
	link := func(parent, left, right int) {
		for member, child := range map[string]int{"rb_node.rb_left": left, "rb_node.rb_right": right} {
			f.set(nodes[parent], member, uint64(nodes[child]))
			f.set(nodes[child], "rb_node.__rb_parent_color", uint64(nodes[parent])|1)
		}
	}
	f.put64(root, uint64(nodes[3]))
	f.set(nodes[3], "rb_node.__rb_parent_color", 1)
	link(3, 1, 5)
	link(1, 0, 2)
	link(5, 4, 6)
	return root, nodes
}

func TestRBTree(t *testing.T) {
	f := newFake(t, 1)
	root, nodes := rbTree(f)
	walk := func(limit int) (got []hypervisor.VirtAddr, problems []error, err error) {
		err = f.guest.walkRBTree(t.Context(), root, limit, func(_ hypervisor.VirtAddr, err error) { problems = append(problems, err) },
			func(node hypervisor.VirtAddr) bool {
				got = append(got, node)
				return true
			})
		return got, problems, err
	}
	if got, problems, err := walk(7); err != nil || problems != nil || !slices.Equal(got, nodes) {
		t.Errorf("%v, %v, %v, want %v", got, problems, err, nodes)
	}
	if got, _, err := walk(6); !errors.Is(err, ErrLimit) || len(got) > 6 {
		t.Errorf("%v, %v", got, err)
	}
	f.set(nodes[6], "rb_node.rb_right", uint64(nodes[3])) // back to the top
	if got, problems, err := walk(100); err != nil || len(got) != 7 || len(problems) != 1 || !errors.Is(problems[0], ErrCycle) {
		t.Errorf("%v, %v, %v", got, problems, err)
	}
	f.set(nodes[6], "rb_node.rb_right", 0)
	f.set(nodes[1], "rb_node.rb_left", 0x1234)
	if got, problems, err := walk(100); err != nil || !slices.Equal(got, nodes[1:]) || len(problems) != 1 || !errors.Is(problems[0], ErrWild) {
		t.Errorf("%v, %v, %v", got, problems, err)
	}
}

// FuzzRBTree writes lies into a tree: each node is met once at most.
func FuzzRBTree(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{8, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, lies []byte) {
		g := newFake(t, 1)
		root, nodes := rbTree(g)
		for i := 0; i+9 <= len(lies) && i < 9*32; i += 9 {
			at := nodes[int(lies[i])%len(nodes)] + hypervisor.VirtAddr(lies[i]/8%3*8)
			value := binary.LittleEndian.Uint64(lies[i+1:])
			if value < 256 { // another node
				value = uint64(nodes[value%7])
			}
			g.put64(at, value)
		}
		seen := map[hypervisor.VirtAddr]bool{}
		err := g.guest.walkRBTree(t.Context(), root, 1000, func(hypervisor.VirtAddr, error) {}, func(node hypervisor.VirtAddr) bool {
			if seen[node] {
				t.Errorf("node %v twice", node)
			}
			seen[node] = true
			return true
		})
		if err != nil && !errors.Is(err, ErrLimit) {
			t.Error(err)
		}
	})
}
