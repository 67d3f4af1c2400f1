package vantage.allow_list_test

import data.vantage.allow_list

event := {"vm": {"name": "web-1", "uri": "qemu:1"}, "process": {"exe": "/bin/x"}}

test_holds[note] if {
	some note, entry in {
		"empty": {},
		"name": {"vm": "web-1"},
		"uri": {"vm": "qemu:1"},
		"exe": {"exe": "/bin/x"},
		"both": {"vm": "web-1", "exe": "/bin/x"},
	}
	allow_list.holds(entry) with input as event
}

test_does_not_hold[note] if {
	some note, entry in {
		"name": {"vm": "web-2"},
		"exe": {"exe": "/bin/y"},
		"one of two": {"vm": "web-1", "exe": "/bin/y"},
	}
	not allow_list.holds(entry) with input as event
}

test_exe_of_no_process if {
	not allow_list.holds({"exe": "/bin/x"}) with input as {"vm": event.vm}
}
