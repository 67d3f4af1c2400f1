package cmdline

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// maxPairs bounds the keys of one option.
const maxPairs = 1024

// keyvals splits QEMU's "first,key=value,flag,noflag": a doubled comma stands
// for one, the first word may go without its key, a word alone is a flag.
func keyvals(s, implied string) map[string]string {
	kv := map[string]string{}
	first := true
	for len(s) > 0 && len(kv) < maxPairs {
		var word string
		word, s = nextWord(s)
		k, v, ok := strings.Cut(word, "=")
		switch {
		case ok:
			kv[k] = v
		case first && implied != "":
			kv[implied] = word
		case strings.HasPrefix(word, "no") && len(word) > 2 && word != "node":
			kv[word[2:]] = "off"
		default:
			kv[word] = "on"
		}
		first = false
	}
	return kv
}

// nextWord returns the text up to the first single comma, unescaped, and the
// rest behind it.
func nextWord(s string) (word, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == ',' {
			if i+1 < len(s) && s[i+1] == ',' {
				i++
			} else {
				return b.String(), s[i+1:]
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// structured reads an option in either of its forms: keyvals, or JSON, whose
// nested objects are flattened to "outer.inner".
func structured(s, implied string) map[string]string {
	if !strings.HasPrefix(s, "{") {
		return keyvals(s, implied)
	}
	kv := map[string]string{}
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber() // sizes above 2^53
	if d.Decode(&m) == nil {
		flatten(kv, "", m)
	}
	return kv
}

func flatten(kv map[string]string, prefix string, m map[string]any) {
	for k, v := range m {
		if len(kv) >= maxPairs {
			return
		}
		switch v := v.(type) {
		case string:
			kv[prefix+k] = v
		case json.Number:
			kv[prefix+k] = v.String()
		case bool:
			kv[prefix+k] = map[bool]string{true: "on", false: "off"}[v]
		case map[string]any:
			if len(prefix) < 256 {
				flatten(kv, prefix+k+".", v)
			}
		}
	}
}

// ParseSize reads a size as QEMU does: a number, hexadecimal too, or a decimal
// fraction with a suffix (B K M G T P E, powers of 1024). A number without a
// suffix counts units of unit bytes.
func ParseSize(s string, unit uint64) (uint64, error) {
	num := strings.TrimRight(s, "bBkKmMgGtTpPeE")
	mul := unit
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X") {
		num = strings.TrimRight(s, "kKmMgGtTpP") // B and E are digits
	}
	switch suffix := s[len(num):]; len(suffix) {
	case 0:
	case 1:
		shift := strings.IndexByte("bkmgtpe", suffix[0]|0x20) * 10
		mul = 1 << shift
	default:
		return 0, fmt.Errorf("size %.32q: suffix", s)
	}
	if n, err := strconv.ParseUint(num, 0, 64); err == nil && (len(num) < 2 || num[0] != '0' || num[1] == 'x' || num[1] == 'X') {
		if n != 0 && mul > math.MaxUint64/n {
			return 0, fmt.Errorf("size %.32q: out of range", s)
		}
		return n * mul, nil
	}
	if strings.ContainsAny(num, "xXpP_eEiInN+-") { // what ParseFloat takes and QEMU does not
		return 0, fmt.Errorf("size %.32q: not a number", s)
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return 0, fmt.Errorf("size %.32q: not a number", s)
	}
	if f *= float64(mul); f < 0 || f >= math.MaxInt64 {
		return 0, fmt.Errorf("size %.32q: out of range", s)
	}
	return uint64(f), nil
}
