package disk

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// victimEnv makes this test binary write to a disk until it is killed.
const victimEnv = "VANTAGE_DISK_VICTIM"

// The victim's disk: what it does in the first part is known from its seed, what
// it does in the second is not.
const (
	knownPart  = 2 << 20
	victimDisk = 4 << 20
)

// step is one thing that a victim does.
type step struct {
	kind   int // 0, 1: write; 2: write zeros; 3: discard
	off, n uint64
	value  byte
}

// steps returns what a victim does between two flushes.
func steps(rng *rand.Rand, value byte) []step {
	list := make([]step, 1+rng.IntN(12))
	for i := range list {
		s := step{kind: rng.IntN(5) & 3, value: value}
		s.off = rng.Uint64N(knownPart) &^ 511
		s.n = min(knownPart-s.off, (1+rng.Uint64N(40))*512)
		if rng.IntN(8) == 0 {
			s.n = min(knownPart-s.off, 200<<10)
		}
		list[i] = s
	}
	return list
}

func (s step) do(d Disk) error {
	switch s.kind {
	case 2:
		return d.WriteZeroes(s.off, s.n, s.value&1 == 0)
	case 3:
		return d.Discard(s.off, s.n)
	}
	return d.WriteV([][]byte{bytes.Repeat([]byte{s.value}, int(s.n))}, s.off)
}

// victim writes to the disk in args[0] as the seed in args[1] has it, and says
// how often it has flushed. It does not end by itself.
func victim(args []string) int {
	err := func() error {
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		d, err := Open(args[0], Options{Format: FormatQcow2})
		if err != nil {
			return err
		}
		var other sync.WaitGroup
		defer other.Wait()
		for i := range 2 {
			other.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
				for {
					s := steps(rng, byte(i))[0]
					s.off += knownPart
					err := s.do(d)
					if rng.IntN(10) == 0 && err == nil {
						err = d.Flush()
					}
					if err != nil {
						fmt.Println(err)
						os.Exit(1)
					}
				}
			})
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		for flushed := 1; ; flushed++ {
			for _, s := range steps(rng, byte(flushed)) {
				if err := s.do(d); err != nil {
					return err
				}
			}
			if err := d.Flush(); err != nil {
				return err
			}
			fmt.Println(flushed)
		}
	}()
	fmt.Println(err)
	return 1
}

// TestKill kills a process that writes to an image, at any moment, again and
// again: the image is sound each time, and has what was flushed.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() {
		rounds = 2
	}
	for _, k := range kinds() {
		switch k.name {
		case "cluster512", "v2", "onqcow2", "snapshots", "zlib512", "refcount1", "v3":
		default:
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			disk := pattern(victimDisk, 9)
			for at := 0; at < len(disk); at += 1 << 20 {
				clear(disk[at : at+700<<10]) // of which there is nothing in the image
			}
			path, _ := k.make(t, disk)
			seed := uint64(len(k.name))
			rng := rand.New(rand.NewPCG(seed, 99))
			leaks, flushes := 0, 0
			for range rounds {
				seed++
				before := content(t, path)
				flushed := kill(t, path, seed, time.Duration(rng.IntN(40_000))*time.Microsecond)
				leaks += check(t, path)
				flushes += flushed
				compareVictim(t, before, content(t, path), seed, flushed)
				if t.Failed() {
					return
				}
			}
			t.Logf("%d flushes, %d leaked clusters seen in all", flushes, leaks)
			qemuImg(t, "check", "-r", "leaks", "-f", "qcow2", path)
		})
	}
}

// kill runs a victim, kills it some time after its first flush, and returns how
// often it had flushed.
func kill(t *testing.T, path string, seed uint64, after time.Duration) int {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, path, fmt.Sprint(seed))
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	flushed := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if flushed == 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
		if flushed, err = strconv.Atoi(lines.Text()); err != nil {
			t.Errorf("the victim says: %s", lines.Text())
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the victim was not killed: %v", err)
	}
	return flushed
}

// compareVictim checks each sector: it is as the last flush left it, or as one
// of the steps after that did.
func compareVictim(t *testing.T, before, after []byte, seed uint64, flushed int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	const sectors = knownPart / sectorSize
	may := make([][]byte, sectors) // other values than before's, as single bytes
	certain := make([]bool, sectors)
	for i := 1; i <= flushed+1; i++ {
		for _, s := range steps(rng, byte(i)) {
			for n := s.off / sectorSize; n < (s.off+s.n)/sectorSize; n++ {
				value := s.value
				if s.kind >= 2 {
					value = 0
				}
				if i <= flushed && s.kind != 3 {
					may[n], certain[n] = nil, true
				}
				may[n] = append(may[n], value)
			}
		}
	}
	for n := range may {
		got := after[n*sectorSize:][:sectorSize]
		ok := !certain[n] && bytes.Equal(got, before[n*sectorSize:][:sectorSize])
		for _, v := range may[n] {
			ok = ok || bytes.Equal(got, bytes.Repeat([]byte{v}, sectorSize))
		}
		if !ok {
			t.Fatalf("seed %d, flushed %d times: sector %d begins with %x: not one of the values %x (as before: %v)",
				seed, flushed, n, got[:16], may[n], !certain[n])
		}
	}
}
