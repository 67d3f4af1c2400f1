package disk

import (
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim(os.Args[1:]))
	}
	labtest.Main(m)
}
