package qemu_test

import (
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(nobodyEnv) != "" {
		os.Exit(asNobody())
	}
	labtest.Main(m)
}
