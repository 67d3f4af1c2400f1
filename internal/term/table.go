package term

import (
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// Column is one column of a Table.
type Column struct {
	Title string
	Right bool // numbers are read from the right
	// Flex marks the one column that gives way first when the table is wider
	// than the terminal; at most one.
	Flex bool
}

// Table collects rows and prints them aligned. Cells are escaped: they may come
// from a guest.
type Table struct {
	cols []Column
	rows [][]string
	hot  map[int]bool
}

// NewTable returns an empty table.
func NewTable(cols ...Column) *Table { return &Table{cols: cols, hot: map[int]bool{}} }

// Row adds a row with one cell per column.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(t.cols))
	for i := range row {
		if i < len(cells) {
			row[i] = Escape(cells[i])
		}
	}
	t.rows = append(t.rows, row)
}

// Highlight marks the row that was added last: it is printed in red on a
// terminal with colour.
func (t *Table) Highlight() { t.hot[len(t.rows)-1] = true }

// What a column keeps on a narrow terminal: the flex column before others give
// way, and every one.
const (
	minFlex  = 12
	minWidth = 4
)

// Print writes the table to w, cut to the width of the terminal when w is one.
func (t *Table) Print(w io.Writer) error {
	widths := make([]int, len(t.cols))
	for i, c := range t.cols {
		widths[i] = runewidth.StringWidth(c.Title)
	}
	for _, r := range t.rows {
		for i, c := range r {
			widths[i] = max(widths[i], runewidth.StringWidth(c))
		}
	}
	limit := Width(w)
	if limit > 0 {
		t.shrink(widths, limit)
	}
	titles := make([]string, len(t.cols))
	for i, c := range t.cols {
		titles[i] = c.Title
	}
	st := NewStyle(w)
	if _, err := io.WriteString(w, st.Bold(t.line(titles, widths, limit))+"\n"); err != nil {
		return err
	}
	for i, r := range t.rows {
		line := t.line(r, widths, limit)
		if t.hot[i] {
			line = st.Red(line)
		}
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// shrink makes columns narrower until a line has limit columns: the flex column
// first, then the widest of those that are not numbers. One name of a guest's,
// long because it is escaped, must not push what is to its right out of sight.
func (t *Table) shrink(widths []int, limit int) {
	excess := 2*(len(widths)-1) - limit
	for _, n := range widths {
		excess += n
	}
	for i, c := range t.cols {
		if c.Flex && excess > 0 {
			by := min(excess, max(0, widths[i]-minFlex))
			widths[i] -= by
			excess -= by
		}
	}
	for ; excess > 0; excess-- {
		widest := -1
		for i, c := range t.cols {
			if !c.Right && widths[i] > minWidth && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// line returns a row, cut to limit columns unless that is 0.
func (t *Table) line(cells []string, widths []int, limit int) string {
	var b strings.Builder
	for i, c := range cells {
		if i > 0 {
			b.WriteString("  ")
		}
		if runewidth.StringWidth(c) > widths[i] {
			c = runewidth.Truncate(c, widths[i], "…")
		}
		fill := strings.Repeat(" ", max(0, widths[i]-runewidth.StringWidth(c)))
		if t.cols[i].Right {
			b.WriteString(fill + c)
		} else {
			b.WriteString(c + fill)
		}
	}
	line := strings.TrimRight(b.String(), " ")
	if limit > 0 {
		line = runewidth.Truncate(line, limit, "…") // where even the numbers are too many
	}
	return line
}

// Width returns the columns of the terminal that w is, or 0 when w is none.
func Width(w io.Writer) int {
	f, ok := w.(interface{ Fd() uintptr }) // *os.File, and what wraps one
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 80
	}
	return n
}

// Style writes in colour where that is wanted: on a terminal, with NO_COLOR
// unset (no-color.org) and TERM not "dumb".
type Style struct{ on bool }

// NewStyle returns the style for w.
func NewStyle(w io.Writer) Style {
	return Style{on: Width(w) > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// Bold returns s in bold.
func (s Style) Bold(t string) string { return s.wrap("1", t) }

// Red returns s in red.
func (s Style) Red(t string) string { return s.wrap("31", t) }

// Green returns s in green.
func (s Style) Green(t string) string { return s.wrap("32", t) }

// Dim returns s dimmed.
func (s Style) Dim(t string) string { return s.wrap("2", t) }

func (s Style) wrap(code, t string) string {
	if !s.on {
		return t
	}
	return "\x1b[" + code + "m" + t + "\x1b[0m"
}
