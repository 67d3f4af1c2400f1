package vantage.rules.incomplete_test

import data.vantage.rules.incomplete

summary(complete, interrupted) := {
	"kind": "scan.summary",
	"vm": {"name": "web-1", "uri": "qemu:1"},
	"summary": {"interrupted": interrupted},
	"coverage": {"complete": complete},
}

names := {r.response | some r in incomplete.responses}

test_incomplete[note] if {
	some note, event in {
		"holes": summary(false, false),
		"interrupted": summary(true, true),
		"both": summary(false, true),
	}
	incomplete.verdict == "unknown" with input as event
	names == {"alert"} with input as event
	names == set() with input as event
		with data.vantage.config.alert_on_incomplete as false
}

test_complete if {
	not incomplete.verdict with input as summary(true, false)
	names == set() with input as summary(true, false)
}

test_without_coverage if {
	names == set() with input as {"kind": "scan.summary", "summary": {}}
}

test_other_kinds if {
	names == set() with input as object.union(summary(false, true), {"kind": "vm.seen"})
}
