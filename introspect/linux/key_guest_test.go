package linux

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Each key of /proc/keys is found with all that is said of it there, and nothing
// that a key holds.
func TestKeysOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			guest, _ := bootHooks(t, kind)
			list, err := guest.Run(t.Context(), "cat /proc/keys")
			if err != nil {
				t.Fatal(err)
			}
			g := pausedHooks(t, guest)
			l, err := g.Keys(t.Context())
			if err != nil || !l.Coverage.Complete() {
				t.Fatal(err, l.Coverage.Problems())
			}
			got := map[string]Key{}
			for _, k := range l.Keys {
				got[fmt.Sprintf("%08x", uint32(k.Serial))] = k
				if left := time.Until(k.Expiry); k.Description == "vt key to expire" && (left < 100*time.Minute || left > 130*time.Minute) {
					t.Errorf("%+v expires in %v", k, left)
				}
				if k.Description == "vt ring" && k.Keys != 4 {
					t.Errorf("%+v", k)
				}
			}
			compared := 0
			for line := range strings.Lines(list) {
				w := strings.Fields(line)
				if len(w) < 9 {
					continue
				}
				k, ok := got[w[0]]
				if !ok {
					t.Errorf("no key %q", line)
					continue
				}
				compared++
				want := fmt.Sprint(w[1], " ", w[4], " ", w[5], " ", w[6], " ", w[7], " ", w[3] == "perm")
				gid := k.GID
				if gid == NoID {
					gid = 65534 // as /proc prints a group that there is not
				}
				if got := fmt.Sprintf("%s %08x %d %d %.9s %v", keyLetters(k), k.Perm, k.UID, gid, k.Type, k.Expiry.IsZero()); got != want {
					t.Errorf("key %q, want %q: %+v", got, want, k)
				}
				if _, text, _ := strings.Cut(line, w[7]); !strings.HasPrefix(strings.TrimSpace(text), k.Description) {
					t.Errorf("key %q, want %q", k.Description, line)
				}
			}
			if compared < 5 {
				t.Errorf("only %d keys compared: %q", compared, list)
			}
			b, err := json.Marshal(l.Keys)
			if err != nil || strings.Contains(string(b), "SECRET") || !strings.Contains(string(b), "vt:logon key") {
				t.Errorf("%s, %v", b, err)
			}
			t.Logf("%d keys, %d compared", len(l.Keys), compared)
		})
	}
}

// keyLetters writes a key's flags as /proc/keys does.
func keyLetters(k Key) string {
	b := []byte("-------")
	for i, f := range []string{"instantiated", "revoked", "dead", "quota", "construction", "negative", "invalidated"} {
		for _, g := range k.Flags {
			if g == f {
				b[i] = "IRDQUNi"[i]
			}
		}
	}
	return string(b)
}
