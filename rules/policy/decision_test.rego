package vantage_test

import data.vantage

finding := {
	"schema_version": "1.0",
	"kind": "finding.scan",
	"severity": "info",
	"now": 1,
	"vm": {"name": "web-1", "uri": "qemu:1", "driver": "qemu"},
	"finding": {"rule": "R", "meta": {"severity": "critical"}, "tags": [], "where": "[heap]"},
}

names(d) := {r.response | some r in d.responses}

test_critical_finding_alerts_and_pauses if {
	d := vantage.decision with input as finding
	d.verdict == "malicious"
	names(d) == {"alert", "pause"}
	every r in d.responses {
		r.severity == "critical"
	}
}

test_unknown_kind_is_benign if {
	d := vantage.decision with input as {"kind": "something.new", "severity": "info", "now": 1}
	d == {"verdict": "benign", "responses": set()}
}

test_never_pause_by_name_or_uri[key] if {
	some key in ["web-1", "qemu:1"]
	d := vantage.decision with input as finding
		with data.vantage.allow.never_pause as {key: true}
	d.verdict == "malicious"
	names(d) == {"alert"}
	count(d.responses) == 2
	some r in d.responses
	contains(r.reason, "never_pause")
}

test_never_pause_of_another_vm if {
	d := vantage.decision with input as finding
		with data.vantage.allow.never_pause as {"db-1": true, "web-1": false}
	names(d) == {"alert", "pause"}
}

test_own_rules_are_gathered if {
	d := vantage.decision with input as {"kind": "vm.seen", "severity": "info"}
		with data.vantage.rules.mine as {
			"verdict": "suspicious",
			"responses": {{"response": "alert", "severity": "low", "reason": "mine"}},
		}
	d.verdict == "suspicious"
	count(d.responses) == 1
}

test_worst_verdict_wins[note] if {
	some note, t in {
		"all": [["unknown", "malicious", "suspicious"], "malicious"],
		"two": [["unknown", "suspicious"], "suspicious"],
		"one": [["unknown"], "unknown"],
		"none": [[], "benign"],
	}
	rules := {sprintf("r%d", [i]): {"verdict": v, "responses": set()} | some i, v in t[0]}
	d := vantage.decision with data.vantage.rules as rules
	d.verdict == t[1]
}

test_every_kind_has_a_decision[kind] if {
	some kind in [
		"finding.scan", "process.hidden", "module.hidden", "vm.seen", "vm.gone",
		"scan.summary", "response.done", "response.failed", "response.skipped", "policy.error",
	]
	d := vantage.decision with input as {"kind": kind, "severity": "info", "now": 1}
	is_string(d.verdict)
}
