package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Suite is a Debian release to take a kernel from.
type Suite string

// Suites, and the kernel series that they have.
const (
	Bullseye Suite = "bullseye" // 5.10
	Bookworm Suite = "bookworm" // 6.1
	Trixie   Suite = "trixie"   // 6.12
	Sid      Suite = "sid"      // 7.x, moves on
)

// Suites returns all suites that the lab knows, oldest first.
func Suites() []Suite { return []Suite{Bullseye, Bookworm, Trixie, Sid} }

// Flavour is a build of Debian's kernel.
type Flavour string

// Flavours.
const (
	Cloud   Flavour = "cloud-amd64" // small; drivers of virtual machines only
	Generic Flavour = "amd64"       // all drivers; can be a Xen dom0
)

// source is one apt repository, without a suite.
type source struct {
	uri      string
	signedBy string // path or key, may be empty
}

// sourcesList returns a one-suite deb822 sources file.
func (s source) sourcesList(suite Suite) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: amd64\n", s.uri, suite)
	if s.signedBy != "" {
		fmt.Fprintf(&b, "Signed-By:%s\n", s.signedBy)
	}
	return b.String()
}

// debianSource finds the machine's own Debian mirror in the apt configuration
// below root ("/"): its main archive, not that of security updates.
func debianSource(root string) (source, error) {
	dir := filepath.Join(root, "etc/apt")
	files, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.sources"))
	lists, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.list"))
	files = append(files, filepath.Join(dir, "sources.list"))
	files = append(files, lists...)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return source{}, fmt.Errorf("apt sources: %w", err)
		}
		var found []source
		if strings.HasSuffix(f, ".sources") {
			found = parseDeb822(string(text))
		} else {
			found = parseOneLine(string(text))
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return source{}, fmt.Errorf("apt sources below %s: no Debian main archive: %w", dir, ErrMissing)
}

// isMainSuite reports whether a suite's name is that of a release, as opposed
// to its updates, backports or security fixes.
func isMainSuite(s string) bool {
	return s != "" && !strings.ContainsAny(s, "-/")
}

// isDebian reports whether uri looks like Debian's main archive.
func isDebian(uri string) bool {
	u := strings.TrimRight(uri, "/")
	return strings.HasSuffix(u, "/debian") || strings.Contains(u, "/archive/debian/")
}

// parseDeb822 returns the Debian archives of a .sources file
// (sources.list(5), "DEB822-STYLE FORMAT").
func parseDeb822(text string) []source {
	var out []source
	for stanza := range strings.SplitSeq(strings.ReplaceAll(text, "\r", ""), "\n\n") {
		field := map[string]string{}
		var last string
		for line := range strings.SplitSeq(stanza, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				if last != "" {
					field[last] += "\n" + line
				}
			default:
				if k, v, ok := strings.Cut(line, ":"); ok {
					last = strings.ToLower(strings.TrimSpace(k))
					field[last] = v
				}
			}
		}
		if strings.TrimSpace(strings.ToLower(field["enabled"])) == "no" ||
			!slices.Contains(strings.Fields(field["types"]), "deb") ||
			!slices.Contains(strings.Fields(field["components"]), "main") ||
			!slices.ContainsFunc(strings.Fields(field["suites"]), isMainSuite) {
			continue
		}
		for _, uri := range strings.Fields(field["uris"]) {
			if isDebian(uri) {
				out = append(out, source{uri: uri, signedBy: field["signed-by"]})
			}
		}
	}
	return out
}

// parseOneLine returns the Debian archives of a sources.list file
// (sources.list(5), "ONE-LINE-STYLE FORMAT").
func parseOneLine(text string) []source {
	var out []source
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "deb" {
			continue
		}
		f = f[1:]
		var signed string
		if len(f) > 0 && strings.HasPrefix(f[0], "[") {
			for len(f) > 0 {
				o := f[0]
				f = f[1:]
				end := strings.HasSuffix(o, "]")
				if v, ok := strings.CutPrefix(strings.Trim(o, "[]"), "signed-by="); ok {
					signed = " " + v
				}
				if end {
					break
				}
			}
		}
		if len(f) >= 3 && isDebian(f[0]) && isMainSuite(f[1]) && slices.Contains(f[2:], "main") {
			out = append(out, source{uri: f[0], signedBy: signed})
		}
	}
	return out
}
