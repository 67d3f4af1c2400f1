package labtest

import (
	"io"
	"os"
	"strings"
	"testing"
)

func TestLeaksAreTold(t *testing.T) {
	before := openFiles()
	if leaks(io.Discard, before) != 0 {
		t.Error("a leak where there is none")
	}
	f, err := os.Open("leak_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if leaks(&said, before) == 0 || !strings.Contains(said.String(), "leak_test.go") {
		t.Errorf("an open file is not told: %q", said.String())
	}
	f.Close()
	stop := make(chan struct{})
	go func() { <-stop }()
	if leaks(io.Discard, before) == 0 {
		t.Error("a goroutine is not told")
	}
	close(stop)
	if leaks(io.Discard, before) != 0 {
		t.Error("what has ended is told")
	}
}
