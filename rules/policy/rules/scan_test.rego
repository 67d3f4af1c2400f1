package vantage.rules.scan_test

import data.vantage.rules.scan

finding(severity) := {
	"kind": "finding.scan",
	"severity": "info",
	"vm": {"name": "web-1", "uri": "qemu:1"},
	"process": {"pid": 7, "comm": "x", "exe": "/bin/x"},
	"finding": {"rule": "R", "meta": {"severity": severity}},
}

names := {r.response | some r in scan.responses}

test_by_severity[severity] if {
	some severity, want in {
		"critical": ["malicious", {"alert", "pause"}],
		"high": ["malicious", {"alert", "pause"}],
		"HIGH": ["malicious", {"alert", "pause"}],
		"medium": ["suspicious", {"alert"}],
		"low": ["suspicious", set()],
		"info": ["suspicious", set()],
	}
	scan.verdict == want[0] with input as finding(severity)
	names == want[1] with input as finding(severity)
}

test_no_usable_severity_is_the_default[severity] if {
	some severity in ["", "awful", 7, null, ["high"]]
	scan.severity == "medium" with input as finding(severity)
	scan.severity == "low" with input as finding(severity)
		with data.vantage.config.default_severity as "low"
	scan.severity == "medium" with input as finding(severity)
		with data.vantage.config.default_severity as "nonsense"
}

test_no_severity_at_all if {
	scan.severity == "medium" with input as {"kind": "finding.scan", "finding": {"rule": "R", "meta": {}}}
}

test_reason_names_the_rule if {
	some r in scan.responses with input as finding("high")
	r.reason == "rule R matched in memory"
}

test_allowed if {
	scan.responses == set() with input as finding("critical")
		with data.vantage.allow.findings as {"R": [{"vm": "web-2"}, {"vm": "web-1", "exe": "/bin/x"}]}
	not scan.verdict with input as finding("critical")
		with data.vantage.allow.findings as {"R": [{}]}
}

test_allowed_elsewhere if {
	names == {"alert", "pause"} with input as finding("critical")
		with data.vantage.allow.findings as {"R": [{"vm": "web-2"}], "S": [{}]}
}

test_config_of_severities if {
	names == {"alert"} with input as finding("critical")
		with data.vantage.config.pause_on_severity as []
	names == {"alert", "pause"} with input as finding("medium")
		with data.vantage.config.pause_on_severity as ["medium"]
}

test_other_kinds if {
	scan.responses == set() with input as object.union(finding("critical"), {"kind": "vm.seen"})
}
