package vhost

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
