package event

import (
	"bytes"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escape writes bytes of a guest as text without loss: printable ASCII stands
// for itself, the backslash is doubled, and every other byte is \xNN. Use it
// once, for bytes that are not meant to be text (what a string of a rule
// matched).
func Escape(b []byte) string {
	var s strings.Builder
	s.Grow(len(b) + 8)
	for _, c := range b {
		switch {
		case c == '\\':
			s.WriteString(`\\`)
		case c >= 0x20 && c < 0x7f:
			s.WriteByte(c)
		default:
			hexByte(&s, c)
		}
	}
	return s.String()
}

func hexByte(s *strings.Builder, c byte) {
	const digits = "0123456789abcdef"
	s.WriteString(`\x`)
	s.WriteByte(digits[c>>4])
	s.WriteByte(digits[c&15])
}

// validUTF8 writes the bytes of s that are no UTF-8 as \xNN. It keeps valid
// text as it is, so that it may be applied again.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			hexByte(&b, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// cleanStrings applies validUTF8 to every string in v that is written as JSON; v
// must be a tree. It returns a copy of what it changes; v stays as it was.
func cleanStrings(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.String:
		s := validUTF8(v.String())
		return reflect.ValueOf(s).Convert(v.Type())
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		p := reflect.New(v.Type().Elem())
		p.Elem().Set(cleanStrings(v.Elem()))
		return p
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		c := reflect.New(v.Type()).Elem()
		c.Set(cleanStrings(v.Elem()))
		return c
	case reflect.Slice:
		if v.IsNil() || v.Type().Elem().Kind() == reflect.Uint8 {
			return v
		}
		c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			c.Index(i).Set(cleanStrings(v.Index(i)))
		}
		return c
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		c := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			c.SetMapIndex(cleanStrings(it.Key()), cleanStrings(it.Value()))
		}
		return c
	case reflect.Struct:
		c := reflect.New(v.Type()).Elem()
		c.Set(v)
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("json") != "-" && f.Type != reflect.TypeFor[Time]() {
				c.Field(i).Set(cleanStrings(v.Field(i)))
			}
		}
		return c
	}
	return v
}

// escapeRunes rewrites the runes of a JSON text that encoding/json leaves as
// they are, though a terminal acts on them or a reader is misled by them (DEL,
// C1 controls, bidirectional controls, other format characters), as \uNNNN. All
// of them stand inside of strings, so the text means the same as before.
func escapeRunes(b []byte) []byte {
	if isPlain(b) || bytes.IndexFunc(b, isUnsafe) < 0 {
		return b
	}
	const digits = "0123456789abcdef"
	out := make([]byte, 0, len(b)+32)
	unit := func(u rune) {
		out = append(out, '\\', 'u', digits[u>>12&15], digits[u>>8&15], digits[u>>4&15], digits[u&15])
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case !isUnsafe(r):
			out = append(out, b[i:i+n]...)
		case r > 0xffff:
			r -= 0x10000
			unit(0xd800 + r>>10)
			unit(0xdc00 + r&0x3ff)
		default:
			unit(r)
		}
		i += n
	}
	return out
}

// isPlain reports whether b is printable ASCII alone, as nearly all of what is
// written is.
func isPlain(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c >= 0x7f {
			return false
		}
	}
	return true
}

// isUnsafe reports whether r is a control or format character other than the
// white space of JSON.
func isUnsafe(r rune) bool {
	if r < 0x7f {
		return r < 0x20 && r != '\n' && r != '\t' && r != '\r'
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
