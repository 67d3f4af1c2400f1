# METADATA
# title: Incomplete scans
# description: |
#   A scan found nothing bad in what it read, and could not read everything, or
#   was interrupted: nothing is known of the rest.
# custom:
#   severity: low
package vantage.rules.incomplete

import data.vantage.settings

verdict := "unknown" if incomplete

responses contains r if {
	incomplete
	settings.alert_on_incomplete
	r := {
		"response": "alert",
		"severity": "low",
		"reason": "a scan is incomplete: a part of the memory could not be read",
		"params": {},
	}
}

incomplete if {
	input.kind == "scan.summary"
	input.coverage.complete == false
}

incomplete if {
	input.kind == "scan.summary"
	input.summary.interrupted == true
}
