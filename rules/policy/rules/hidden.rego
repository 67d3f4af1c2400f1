# METADATA
# title: Hidden processes and modules
# description: |
#   Something runs that the guest's own lists do not show: what a rootkit does.
#   Raises an alert; pauses the VM too when pause_on_hidden is set.
# custom:
#   severity: high
package vantage.rules.hidden

import data.vantage.allow_list
import data.vantage.settings

verdict := "suspicious" if count(reasons) > 0

responses contains r if {
	some reason in reasons
	r := respond("alert", reason)
}

responses contains r if {
	settings.pause_on_hidden
	some reason in reasons
	r := respond("pause", reason)
}

reasons contains "a process is hidden from the guest's own lists" if {
	input.kind == "process.hidden"
	not allowed_process
}

reasons contains "a kernel module is hidden from the guest's own list" if {
	input.kind == "module.hidden"
	not allowed_module
}

allowed_process if {
	some entry in data.vantage.allow.processes[input.process.comm]
	allow_list.holds(entry)
}

allowed_module if {
	some entry in data.vantage.allow.modules[input.module.name]
	allow_list.holds(entry)
}

respond(name, reason) := {
	"response": name,
	"severity": "high",
	"reason": reason,
	"params": {},
}
