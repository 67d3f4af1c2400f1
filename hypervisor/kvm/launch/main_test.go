package launch

import (
	"fmt"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(envClient); spec != "" {
		fmt.Fprintln(os.Stderr, client(spec)) // it is killed before it ends by itself
		os.Exit(1)
	}
	labtest.Main(m)
}
