package scanner

const hexDigits = "0123456789abcdef"

// Escape writes guest bytes as printable ASCII: a backslash becomes \\, and
// every byte outside 0x20-0x7e becomes \xNN. The result is safe on a terminal,
// and Unescape-able by any language's string syntax.
func Escape(b []byte) string {
	out := make([]byte, 0, len(b)+8)
	for _, c := range b {
		switch {
		case c == '\\':
			out = append(out, '\\', '\\')
		case c >= 0x20 && c < 0x7f:
			out = append(out, c)
		default:
			out = append(out, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(out)
}
