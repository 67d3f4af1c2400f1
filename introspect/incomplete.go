package introspect

import "fmt"

// IncompleteError says that a walk could not read, or did not believe, all that
// it should have. It is what Coverage.Err returns, and what iterators over what
// was listed end with.
type IncompleteError struct {
	Problems []Problem // the first MaxProblems of them
	Total    int
}

func (e *IncompleteError) Error() string {
	s := fmt.Sprintf("incomplete: %d things could not be read", e.Total)
	if len(e.Problems) > 0 {
		s += ", the first: " + e.Problems[0].String()
	}
	return s
}

// Err returns an *IncompleteError when something was missed, else nil. c may be
// nil: nothing was missed.
func (c *Coverage) Err() error {
	if c == nil || c.Complete() {
		return nil
	}
	return &IncompleteError{Problems: c.Problems(), Total: c.Total()}
}
