package vantage.rules.hidden_test

import data.vantage.rules.hidden

process := {
	"kind": "process.hidden",
	"vm": {"name": "web-1", "uri": "qemu:1"},
	"process": {"pid": 7, "comm": "rk", "exe": "/bin/rk"},
}

module := {
	"kind": "module.hidden",
	"vm": {"name": "web-1", "uri": "qemu:1"},
	"module": {"name": "rk"},
}

names := {r.response | some r in hidden.responses}

test_alerts[kind] if {
	some kind, event in {"process": process, "module": module}
	hidden.verdict == "suspicious" with input as event
	names == {"alert"} with input as event
	some r in hidden.responses with input as event
	r.severity == "high"
	contains(r.reason, kind)
}

test_pauses_when_told[kind] if {
	some kind, event in {"process": process, "module": module}
	names == {"alert", "pause"} with input as event
		with data.vantage.config.pause_on_hidden as true
}

test_allowed_process if {
	names == set() with input as process
		with data.vantage.allow.processes as {"rk": [{"vm": "web-1"}]}
	names == {"alert"} with input as process
		with data.vantage.allow.processes as {"rk": [{"vm": "web-2"}]}
}

test_allowed_module if {
	names == set() with input as module
		with data.vantage.allow.modules as {"rk": [{}]}
	names == {"alert"} with input as module
		with data.vantage.allow.processes as {"rk": [{}]}
}

test_other_kinds if {
	names == set() with input as object.union(process, {"kind": "vm.seen"})
}
