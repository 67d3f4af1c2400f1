package disk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// qemuImg runs qemu-img, which is the truth about images.
func qemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := tryQemuImg(t, args...)
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return out
}

func tryQemuImg(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	return program(t, "qemu-img", args...)
}

// qemuIO runs commands of qemu-io on an image.
func qemuIO(t testing.TB, image, format string, commands ...string) {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out, err := program(t, "qemu-io", append(args, image)...); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io %q: %v\n%s", args, err, out)
	}
}

func program(t testing.TB, name string, args ...string) ([]byte, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		labtest.Missing(t, "no %s here: install qemu-utils", name)
	}
	return exec.CommandContext(t.Context(), path, args...).CombinedOutput()
}

// check has qemu-img look for errors in an image. Leaks are none.
func check(t testing.TB, image string) (leaks int) {
	t.Helper()
	out, err := tryQemuImg(t, "check", "--output=json", "-f", "qcow2", image)
	if i := bytes.IndexByte(out, '{'); i >= 0 {
		out = out[i:] // behind the leaks, one a line
	}
	var result struct {
		Corruptions int `json:"corruptions"`
		Leaks       int `json:"leaks"`
		CheckErrors int `json:"check-errors"`
	}
	if jsonErr := json.Unmarshal(out, &result); jsonErr != nil {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	if result.Corruptions+result.CheckErrors > 0 {
		text, _ := tryQemuImg(t, "check", "-f", "qcow2", image)
		t.Fatalf("qemu-img check: %d corruptions, %d check errors\n%s", result.Corruptions, result.CheckErrors, text)
	}
	return result.Leaks
}

// content returns the disk in an image, as qemu-img sees it.
func content(t testing.TB, image string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "content")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", image, out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sameBytes fails the test where two disks differ.
func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %#x is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// imageKind is a way to make an image that a test runs on.
type imageKind struct {
	name string
	// make makes an image of a disk of size bytes with the given content, and
	// returns its path and format.
	make func(t testing.TB, content []byte) (path, format string)
}

// pattern returns n bytes that differ from place to place.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>9) ^ byte(i>>17)*31 ^ byte(i)*7 ^ seed
	}
	return b
}

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// kinds are all kinds of images. The disk's content is in the image, or in its
// backing file, or half and half.
func kinds() []imageKind {
	ks := []imageKind{{"raw", func(t testing.TB, c []byte) (string, string) { return writeFile(t, "d.raw", c), FormatRaw }}}
	converted := func(name string, args ...string) {
		ks = append(ks, imageKind{name, func(t testing.TB, c []byte) (string, string) {
			path := filepath.Join(t.TempDir(), "d.qcow2")
			qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), writeFile(t, "d.raw", c), path)...)
			return path, FormatQcow2
		}})
	}
	converted("v3")
	converted("v2", "-o", "compat=0.10")
	converted("cluster512", "-o", "cluster_size=512")
	converted("cluster2M", "-o", "cluster_size=2M")
	converted("lazy", "-o", "lazy_refcounts=on")
	converted("zlib", "-c")
	converted("zlib512", "-c", "-o", "cluster_size=512")
	converted("zlibv2", "-c", "-o", "compat=0.10")
	converted("zstd", "-c", "-o", "compression_type=zstd")
	converted("zstd2M", "-c", "-o", "compression_type=zstd,cluster_size=2M")
	converted("metadata", "-o", "preallocation=metadata")
	for _, bits := range []int{1, 2, 4, 8, 32, 64} {
		converted(fmt.Sprintf("refcount%d", bits), "-o", fmt.Sprintf("cluster_size=4096,refcount_bits=%d", bits))
	}
	converted("growing", "-o", "cluster_size=512,refcount_bits=64")
	overlay := func(name, backingFormat string, args ...string) {
		ks = append(ks, imageKind{name, func(t testing.TB, c []byte) (string, string) {
			dir := t.TempDir()
			qemuImg(t, "convert", "-f", "raw", "-O", backingFormat, writeFile(t, "d.raw", c), filepath.Join(dir, "base"))
			path := filepath.Join(dir, "d.qcow2")
			qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2", "-b", "base", "-F", backingFormat}, args...), path)...)
			return path, FormatQcow2
		}})
	}
	overlay("onraw", "raw")
	overlay("onqcow2", "qcow2", "-o", "cluster_size=4096")
	overlay("v2onraw", "raw", "-o", "compat=0.10,cluster_size=4096")
	ks = append(ks,
		imageKind{"onshort", func(t testing.TB, c []byte) (string, string) {
			// A backing file that ends inside a cluster; what is behind is zeros there.
			dir := t.TempDir()
			short := len(c)/2&^4095 + 512
			writeFile(t, "unused", nil)
			if err := os.WriteFile(filepath.Join(dir, "base"), c[:short], 0o600); err != nil {
				t.Fatal(err)
			}
			clear(c[short:])
			path := filepath.Join(dir, "d.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", path, fmt.Sprint(len(c)))
			return path, FormatQcow2
		}},
		imageKind{"chain", func(t testing.TB, c []byte) (string, string) {
			dir := t.TempDir()
			qemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", writeFile(t, "d.raw", c), filepath.Join(dir, "0"))
			for i := 1; i <= 5; i++ {
				path := filepath.Join(dir, fmt.Sprint(i))
				qemuImg(t, "create", "-q", "-f", "qcow2", "-b", fmt.Sprint(i-1), "-F", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", 1024<<i), path)
				at := i * len(c) / 7 &^ 511
				qemuIO(t, path, "qcow2", fmt.Sprintf("write -P %d %d 5120", i, at))
				copy(c[at:], bytes.Repeat([]byte{byte(i)}, 5120))
			}
			return filepath.Join(dir, "5"), FormatQcow2
		}},
		imageKind{"snapshots", func(t testing.TB, c []byte) (string, string) {
			path := filepath.Join(t.TempDir(), "d.qcow2")
			qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", writeFile(t, "d.raw", c), path)
			qemuImg(t, "snapshot", "-c", "one", path)
			qemuIO(t, path, "qcow2", fmt.Sprintf("write -P 7 %d 9216", len(c)/3&^511))
			copy(c[len(c)/3&^511:], bytes.Repeat([]byte{7}, 9216))
			qemuImg(t, "snapshot", "-c", "two", path)
			return path, FormatQcow2
		}},
		imageKind{"zeroes", func(t testing.TB, c []byte) (string, string) {
			path := filepath.Join(t.TempDir(), "d.qcow2")
			qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", writeFile(t, "d.raw", c), path)
			half := len(c) / 2
			qemuIO(t, path, "qcow2", fmt.Sprintf("write -z %d %d", half, half/2), fmt.Sprintf("write -zu %d %d", half+half/2, half/4), "discard 0 65536")
			clear(c[half : half+half/2+half/4])
			clear(c[:65536])
			return path, FormatQcow2
		}},
	)
	return ks
}
