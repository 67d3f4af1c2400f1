package scanner

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"

	"github.com/hillu/go-yara/v4"
)

// Rules is a compiled set of rules. It is safe for concurrent use, and shared by
// all workers of all scans.
type Rules struct {
	sets     []*ruleSet
	identity string
	warnings []CompileMessage
}

// ruleSet is one libyara rule set: all that was compiled from source, or one
// compiled file. libyara cannot merge them.
type ruleSet struct {
	yr        *yara.Rules
	rules     []ruleInfo     // those that are reported, in libyara's order
	index     map[string]int // by key
	total     int            // private rules included
	externals []string       // names of built-in external variables that the set has
}

// ruleInfo is what findings say of a rule.
type ruleInfo struct {
	namespace, name string
	tags            []string
	meta            map[string]any
	strings         []string // identifiers, in libyara's order
}

func ruleKey(namespace, name string) string { return namespace + "\x00" + name }

func newRuleSet(yr *yara.Rules, externals []string) *ruleSet {
	s := &ruleSet{yr: yr, index: map[string]int{}, externals: externals}
	for _, r := range yr.GetRules() {
		s.total++
		if r.IsPrivate() {
			continue // libyara does not report these
		}
		info := ruleInfo{namespace: r.Namespace(), name: r.Identifier(), tags: r.Tags(), meta: map[string]any{}}
		if info.tags == nil {
			info.tags = []string{}
		}
		for _, m := range r.Metas() {
			switch old := info.meta[m.Identifier].(type) {
			case nil:
				info.meta[m.Identifier] = m.Value
			case []any:
				info.meta[m.Identifier] = append(old, m.Value)
			default:
				info.meta[m.Identifier] = []any{old, m.Value}
			}
		}
		for _, str := range r.Strings() {
			info.strings = append(info.strings, str.Identifier())
		}
		s.index[ruleKey(info.namespace, info.name)] = len(s.rules)
		s.rules = append(s.rules, info)
	}
	return s
}

// Count returns the number of rules, private ones included.
func (r *Rules) Count() int {
	n := 0
	for _, s := range r.sets {
		n += s.total
	}
	return n
}

// RuleInfo is what is known of one rule.
type RuleInfo struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Tags      []string       `json:"tags"`
	Meta      map[string]any `json:"meta"`
}

// Info returns the rules that can be reported, in the order in which they were
// compiled. The caller must not change their tags and meta.
func (r *Rules) Info() []RuleInfo {
	var infos []RuleInfo
	for _, s := range r.sets {
		for _, i := range s.rules {
			infos = append(infos, RuleInfo{i.namespace, i.name, i.tags, i.meta})
		}
	}
	return infos
}

// Names returns the names of the rules that can be reported, as
// "namespace:rule", sorted.
func (r *Rules) Names() []string {
	var names []string
	for _, s := range r.sets {
		for _, i := range s.rules {
			names = append(names, i.namespace+":"+i.name)
		}
	}
	slices.Sort(names)
	return names
}

// Identity returns a hash (SHA-256, hex) over all that the rules were made
// from: equal identities mean equal rules.
func (r *Rules) Identity() string { return r.identity }

// Warnings returns what libyara warned of when it compiled the rules.
func (r *Rules) Warnings() []CompileMessage { return slices.Clone(r.warnings) }

// Close frees the rules. No scan may be running with them.
func (r *Rules) Close() error {
	for _, s := range r.sets {
		s.yr.Destroy()
	}
	r.sets = nil
	return nil
}

// identityHash hashes a sequence of fields, each with its length.
type identityHash struct{ h hash.Hash }

func newIdentityHash() identityHash { return identityHash{sha256.New()} }

func (i identityHash) add(field string, b []byte) {
	fmt.Fprintf(i.h, "%d:%s %d:", len(field), field, len(b))
	i.h.Write(b)
}

func (i identityHash) String() string { return hex.EncodeToString(i.h.Sum(nil)) }
