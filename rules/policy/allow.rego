# METADATA
# title: Allow lists
# description: Whether an entry of data.vantage.allow holds for the event.
package vantage.allow_list

# METADATA
# description: Every condition that the entry names is met.
holds(entry) if {
	vm_matches(entry)
	exe_matches(entry)
}

vm_matches(entry) if not entry.vm

vm_matches(entry) if entry.vm == input.vm.name

vm_matches(entry) if entry.vm == input.vm.uri

exe_matches(entry) if not entry.exe

exe_matches(entry) if entry.exe == input.process.exe
