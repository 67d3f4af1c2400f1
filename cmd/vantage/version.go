package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and of what it is built",
		Example: `  vantage version
  vantage version --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: a.version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if bi, ok := debug.ReadBuildInfo(); ok {
				for _, d := range bi.Deps {
					switch d.Path {
					case "github.com/hillu/go-yara/v4":
						v.YARA = d.Version
					case "github.com/open-policy-agent/opa":
						v.OPA = d.Version
					}
				}
			}
			if a.json {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.stdout, "vantage %s (%s, %s, go-yara %s, opa %s)\n", v.Version, v.Go, v.Platform, v.YARA, v.OPA)
			return nil
		},
	}
}

type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	YARA     string `json:"go_yara"`
	OPA      string `json:"opa"`
}
