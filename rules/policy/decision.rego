# METADATA
# title: Decision
# description: |
#   What is to be done about an event. It gathers the verdict and the responses
#   of every package data.vantage.rules.*; to add a rule, add such a package.
#
#   A VM that data.vantage.allow.never_pause names is not paused, whatever a
#   rule asks for; the alert says so.
# entrypoint: true
package vantage

decision := {"verdict": verdict, "responses": responses}

verdicts contains data.vantage.rules[_].verdict

default verdict := "benign"

verdict := "malicious" if {
	"malicious" in verdicts
} else := "suspicious" if {
	"suspicious" in verdicts
} else := "unknown" if {
	"unknown" in verdicts
}

asked contains data.vantage.rules[_].responses[_]

responses contains r if {
	some r in asked
	not refused(r)
}

responses contains r if {
	some pause in asked
	refused(pause)
	r := {
		"response": "alert",
		"severity": pause.severity,
		"reason": "not paused, as never_pause names this VM",
		"params": {},
	}
}

refused(r) if {
	r.response == "pause"
	spared
}

# object.get and not a reference: OPA indexes rules by references to data, and
# looks through all of the list for it at each decision.
spared if {
	some key in [input.vm.name, input.vm.uri]
	object.get(data.vantage.allow.never_pause, key, false) == true
}
