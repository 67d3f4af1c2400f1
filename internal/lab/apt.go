package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// apt downloads packages of one suite without installing any: its lists,
// sources and cache are all below dir, and the machine's own are not touched.
type apt struct {
	dir   string
	suite Suite
}

// newApt prepares dir.
func newApt(dir string, suite Suite, src source) (*apt, error) {
	for _, d := range []string{"lists/partial", "archives/partial", "deb"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	err := os.WriteFile(filepath.Join(dir, "lab.sources"), []byte(src.sourcesList(suite)), 0o644)
	return &apt{dir: dir, suite: suite}, err
}

// run runs apt-get or apt-cache and returns what it printed.
func (a *apt) run(ctx context.Context, prog string, args ...string) (string, error) {
	opts := []string{
		"-q", "-q",
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "lab.sources"),
		"-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::Status=/dev/null", // what is installed here is no candidate
		"-o", "Dir::Cache=" + a.dir,
		"-o", "Dir::Cache::archives=archives",
		"-o", "Dir::Cache::pkgcache=",
		"-o", "Dir::Cache::srcpkgcache=",
		"-o", "APT::Get::List-Cleanup=0",
		// The folder is the caller's; without this apt warns that its own
		// unprivileged user cannot write there.
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
		"-o", "Acquire::http::Timeout=30",
		"-o", "Acquire::https::Timeout=30",
		// A mirror that lags is good enough for a guest's kernel; what it has
		// is still checked against Debian's signature.
		"-o", "Acquire::Check-Valid-Until=false",
		"-o", "APT::Architecture=amd64",
	}
	// A mirror that cannot be reached must be an error and not a warning next
	// to an empty list of packages.
	if prog == "apt-get" {
		opts = append(opts, "-o", "APT::Update::Error-Mode=any")
	}
	cmd := exec.CommandContext(ctx, prog, append(opts, args...)...)
	cmd.Dir = filepath.Join(a.dir, "deb")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", &MissingError{What: prog, Package: "apt"}
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("%s %s: %w", prog, args[0], context.Cause(ctx))
		}
		return "", fmt.Errorf("%s %s: %w: %s", prog, args[0], err, lastLines(stderr.String(), 5))
	}
	return stdout.String(), nil
}

// kernelPackage is what a kernel is split into; the name begins with the
// version, which tells it from helpers that have no files of the kernel.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules|base)-[0-9]`)

// kernelPackages returns the packages that hold the newest kernel of a flavour,
// sorted: one up to Linux 6.12; image, binary, modules and base after that.
func (a *apt) kernelPackages(ctx context.Context, f Flavour) ([]string, error) {
	var out []string
	queue := []string{"linux-image-" + string(f)}
	seen := map[string]bool{}
	for len(queue) > 0 && len(seen) < 32 {
		p := queue[0]
		queue = queue[1:]
		if seen[p] {
			continue
		}
		seen[p] = true
		text, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", p)
		if err != nil {
			return nil, err
		}
		if kernelPackage.MatchString(p) {
			out = append(out, p)
		}
		queue = append(queue, depends(text, kernelPackage)...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no package of flavour %s", f)
	}
	slices.Sort(out)
	return out, nil
}

// depends returns the packages in the Depends field of a package's record whose
// names match.
func depends(record string, match *regexp.Regexp) []string {
	var out []string
	for line := range strings.SplitSeq(record, "\n") {
		deps, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(deps, ",") {
			if f := strings.Fields(d); len(f) > 0 && match.MatchString(f[0]) {
				out = append(out, f[0])
			}
		}
	}
	return out
}

// lastLines returns the last n lines of s in one line.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "; ")
}
