package scanner

import (
	"reflect"

	"github.com/hillu/go-yara/v4"
)

// firstPass takes the rules that match, and one match of each of their strings.
type firstPass struct {
	set     *ruleSet
	rules   []int          // indexes in set.rules
	matches map[int][]spot // no entry for a rule of which no string matched
	shown   int            // where in the buffer begins what libyara sees
}

// spot is a match in the buffer that libyara was given.
type spot struct {
	str    int
	off    int
	length int
}

// RuleMatching implements yara.ScanCallback.
func (p *firstPass) RuleMatching(sc *yara.ScanContext, r *yara.Rule) (bool, error) {
	i, ok := p.set.index[ruleKey(r.Namespace(), r.Identifier())]
	if !ok {
		return false, nil
	}
	p.rules = append(p.rules, i)
	if p.matches == nil {
		p.matches = map[int][]spot{}
	}
	for k, s := range r.Strings() {
		if ms := s.Matches(sc); len(ms) > 0 {
			if v := look(&ms[0]); !v.private {
				p.matches[i] = append(p.matches[i], spot{k, p.shown + v.off, v.length})
			}
		}
	}
	return false, nil
}

// earliest returns the offset of the first match in the buffer, false when no
// rule has any.
func (p *firstPass) earliest() (off int, ok bool) {
	for _, spots := range p.matches {
		for _, s := range spots {
			if !ok || s.off < off {
				off, ok = s.off, true
			}
		}
	}
	return off, ok
}

// secondPass lists the matches of the rules in want, window by window, whether
// or not a rule's condition holds in the window.
type secondPass struct {
	w    *worker
	e    *extent
	set  *ruleSet
	want map[int]*hit

	from, to int // the window, as offsets of the buffer
	shown    int // where what libyara sees of it begins
	next     int // index of the rule that libyara tells of next
}

// RuleMatching implements yara.ScanCallback.
func (p *secondPass) RuleMatching(sc *yara.ScanContext, r *yara.Rule) (bool, error) {
	return p.rule(sc, r)
}

// RuleNotMatching implements yara.ScanCallbackNoMatch.
func (p *secondPass) RuleNotMatching(sc *yara.ScanContext, r *yara.Rule) (bool, error) {
	return p.rule(sc, r)
}

// rule is called for each rule in libyara's order, which is that of set.rules.
// To ask each for its name would take longer than the scan.
func (p *secondPass) rule(sc *yara.ScanContext, r *yara.Rule) (bool, error) {
	i := p.next
	p.next++
	h := p.want[i]
	if h == nil {
		return false, nil
	}
	if len(h.matches) >= p.w.opts.MaxStrings {
		return false, nil
	}
	var found []match
	for k, s := range r.Strings() {
		kept := 0
		for _, m := range s.Matches(sc) {
			off := p.shown + int(m.Offset())
			if off >= p.to {
				break // matches are in order
			}
			if off < p.from {
				continue
			}
			if kept == p.w.opts.MaxStrings {
				h.more = true
				break
			}
			v := look(&m)
			if v.private {
				break
			}
			if mm, ok := p.w.place(p.e, off, v.length); ok {
				mm.str = k
				found = append(found, mm)
				kept++
			}
		}
	}
	sortMatches(found)
	if room := p.w.opts.MaxStrings - len(h.matches); len(found) > room {
		found, h.more = found[:room], true
	}
	h.matches = append(h.matches, found...)
	return false, nil
}

// full reports whether no rule needs more matches.
func (p *secondPass) full() bool {
	for _, h := range p.want {
		if len(h.matches) < p.w.opts.MaxStrings {
			return false
		}
	}
	return true
}

// more says of all rules that they may have more matches.
func (p *secondPass) more() {
	for _, h := range p.want {
		h.more = true
	}
}

// matchView is what go-yara's Match has but does not tell.
type matchView struct {
	off, length int
	private     bool
}

// look reads a match. go-yara gives its data, which libyara cuts short, but not
// its length.
func look(m *yara.Match) matchView {
	v := matchView{off: int(m.Offset())}
	c := reflect.ValueOf(m).Elem().FieldByName("cptr").Elem()
	v.length = int(c.FieldByName("match_length").Int())
	v.private = c.FieldByName("is_private").Bool()
	return v
}
