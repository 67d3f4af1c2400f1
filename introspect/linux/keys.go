package linux

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of keys.
const (
	maxKeys       = 1 << 20
	maxKeyType    = 32   // KEY_MAX_TYPE_NAME, security/keys/keyctl.c
	maxKeyDesc    = 4096 // KEY_MAX_DESC_SIZE, there
	keyUserConstr = 3    // KEY_FLAG_USER_CONSTRUCT, include/linux/key.h
)

// keyFlags are bits of a key's flags (include/linux/key.h, KEY_FLAG_*).
var keyFlags = []struct {
	bit  uint
	name string
}{{1, "revoked"}, {0, "dead"}, {2, "quota"}, {keyUserConstr, "construction"}, {5, "invalidated"}}

// keyFields is where the facts of keys lie.
type keyFields struct {
	tree                                                      hypervisor.VirtAddr
	node, serial, usage, expiry, uid, gid, perm, state, flags field
	kind, desc, leaves                                        field
	span                                                      span
	typeName                                                  field // in struct key_type
}

func (k *keyFields) facts() []fact {
	return []fact{
		{&k.node, 0, must, []string{"key.serial_node"}},
		{&k.serial, 4, must, []string{"key.serial"}},
		{&k.usage, 4, want, []string{"key.usage"}},
		{&k.expiry, 8, want, []string{"key.expiry"}},
		{&k.uid, 4, want, []string{"key.uid"}},
		{&k.gid, 4, want, []string{"key.gid"}},
		{&k.perm, 4, want, []string{"key.perm"}},
		{&k.state, 2, want, []string{"key.state"}},
		{&k.flags, 8, want, []string{"key.flags"}},
		{&k.kind, 8, must, []string{"key.index_key.type", "key.type"}},
		{&k.desc, 8, must, []string{"key.index_key.description", "key.description"}},
		{&k.leaves, 8, may, []string{"key.keys.nr_leaves_on_tree"}},
		{&k.typeName, 8, must, []string{"key_type.name"}},
	}
}

func (k *keyFields) symbols() []symbol {
	return []symbol{{&k.tree, must, []string{"key_serial_tree"}}}
}

func (k *keyFields) finish(types) {
	k.span = spanOf(k.node, k.serial, k.usage, k.expiry, k.uid, k.gid, k.perm, k.state, k.flags, k.kind, k.desc)
}

// Keys lists the keys that the guest's kernel keeps: what they are called and
// whose they are, never what they hold.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol for a
// kernel without keys.
func (g *Guest) Keys(ctx context.Context) (KeyList, error) {
	var best KeyList
	for i := range g.rounds() {
		l, err := g.keyLook(ctx)
		if err != nil {
			return KeyList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list keys: %w", err)
		}
		if i == 0 || l.Coverage.Total() < best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

func (g *Guest) keyLook(ctx context.Context) (KeyList, error) {
	cov := &introspect.Coverage{}
	l := KeyList{Keys: []Key{}, Coverage: cov}
	f, err := tableOf[keyFields](g, cov)
	if err != nil {
		return l, err
	}
	types := map[hypervisor.VirtAddr]string{}
	bad := func(at hypervisor.VirtAddr, err error) { cov.Add("key", at, err) }
	err = g.walkRBTree(ctx, f.tree, maxKeys, bad, func(node hypervisor.VirtAddr) bool {
		at := node - hypervisor.VirtAddr(f.node.off)
		k, err := g.key(f, at, types)
		if err != nil {
			bad(at, err)
		} else {
			l.Keys = append(l.Keys, k)
		}
		return true
	})
	if err != nil {
		if ctx.Err() != nil {
			return l, ctx.Err()
		}
		cov.Add("tree of keys", f.tree, err)
	}
	slices.SortFunc(l.Keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Serial, b.Serial), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return l, nil
}

// key reads the struct key at addr. kinds has the names of those struct key_type
// that were met.
func (g *Guest) key(f *keyFields, addr hypervisor.VirtAddr, kinds map[hypervisor.VirtAddr]string) (Key, error) {
	o, _, err := g.r.object(nil, addr, f.span)
	if err != nil {
		return Key{}, err
	}
	k := Key{
		Serial: o.int32(f.serial), UID: keyOwner(o, f.uid), GID: keyOwner(o, f.gid), Perm: uint32(o.uint(f.perm)),
		Usage: uint32(o.uint(f.usage)), KernelAddress: addr, Flags: []string{},
	}
	if k.Serial <= 0 {
		return k, fmt.Errorf("%w: serial number %d", ErrTorn, k.Serial)
	}
	flags := o.uint(f.flags)
	switch state := int16(o.uint(f.state)); {
	case state < 0: // the error that it was rejected with
		k.Flags = append(k.Flags, "instantiated", "negative")
	case state > 0:
		k.Flags = append(k.Flags, "instantiated")
	}
	for _, x := range keyFlags {
		if flags&(1<<x.bit) != 0 {
			k.Flags = append(k.Flags, x.name)
		}
	}
	// TIME64_MAX is never, and so is what no clock gets to.
	if t := o.uint(f.expiry); t != 0 && t < math.MaxInt64/uint64(time.Second) {
		k.Expiry = time.Unix(int64(t), 0).UTC()
	}
	kind, known := kinds[o.ptr(f.kind)]
	if !known {
		if err := g.r.check(addr, o.ptr(f.kind), 8); err != nil {
			return k, err
		}
		if kind, err = g.r.text(o.ptr(f.kind), f.typeName, maxKeyType); err != nil {
			return k, fmt.Errorf("type of a key: %w", err)
		}
		kinds[o.ptr(f.kind)] = kind
	}
	// In any other key the payload lies there.
	if k.Type = kind; kind == "keyring" && f.leaves.ok {
		if k.Keys, err = g.r.u64(addr + hypervisor.VirtAddr(f.leaves.off)); err != nil {
			return k, err
		}
	}
	if err := g.r.check(addr, o.ptr(f.desc), 1); err != nil {
		return k, err
	}
	if k.Description, err = g.r.cstring(o.ptr(f.desc), maxKeyDesc); err != nil {
		return k, fmt.Errorf("description of a key: %w", err)
	}
	return k, nil
}

// keyOwner returns a key's user or group, as the first user namespace numbers it.
func keyOwner(o object, f field) int {
	id := o.uint(f)
	if !f.ok || id == math.MaxUint32 {
		return NoID
	}
	return int(id)
}
