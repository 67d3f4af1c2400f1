# METADATA
# title: Scan findings
# description: |
#   A YARA rule matched in a VM's memory. The severity is the rule's own (its
#   meta "severity"), or default_severity. By default critical and high pause
#   the VM and raise an alert, medium raises an alert.
# custom:
#   severity: that of the rule
package vantage.rules.scan

import data.vantage.allow_list
import data.vantage.settings

verdict := "malicious" if {
	found
	severity in settings.pause_on_severity
} else := "suspicious" if {
	found
}

responses contains r if {
	found
	severity in settings.alert_on_severity
	r := respond("alert")
}

responses contains r if {
	found
	severity in settings.pause_on_severity
	r := respond("pause")
}

found if {
	input.kind == "finding.scan"
	not allowed
}

allowed if {
	some entry in data.vantage.allow.findings[input.finding.rule]
	allow_list.holds(entry)
}

default severity := "medium"

severity := own_severity if {
	own_severity in severities
} else := settings.default_severity if {
	settings.default_severity in severities
}

own_severity := lower(input.finding.meta.severity)

severities := {"info", "low", "medium", "high", "critical"}

respond(name) := {
	"response": name,
	"severity": severity,
	"reason": sprintf("rule %s matched in memory", [input.finding.rule]),
	"params": {},
}
