# METADATA
# title: Settings
# description: data.vantage.config, with a default for each value that is missing.
package vantage.settings

default pause_on_severity := ["critical", "high"]

pause_on_severity := data.vantage.config.pause_on_severity

default alert_on_severity := ["critical", "high", "medium"]

alert_on_severity := data.vantage.config.alert_on_severity

default default_severity := "medium"

default_severity := data.vantage.config.default_severity

default pause_on_hidden := false

pause_on_hidden := data.vantage.config.pause_on_hidden

default alert_on_incomplete := true

alert_on_incomplete := data.vantage.config.alert_on_incomplete
