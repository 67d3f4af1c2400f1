package kvm

import (
	"fmt"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(clientEnv); path != "" {
		if err := client(path); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		return
	}
	labtest.Main(m)
}
