package event

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ocsfObject is what OCSF 1.5.0 says of a class or an object, as far as it is
// used here: the attributes that it requires, those of which it requires one,
// and those that it knows, with the object each holds ("" for a scalar, "json"
// for any JSON). Written down by hand from github.com/ocsf/ocsf-schema (events/,
// objects/), without the parts that come with a profile other than host.
type ocsfObject struct {
	required   []string
	atLeastOne []string
	known      map[string]string
}

func attrs(objects map[string]string, scalars string) map[string]string {
	for s := range strings.FieldsSeq(scalars) {
		objects[s] = ""
	}
	return objects
}

// baseKnown adds what base_event gives every class; device is of the host
// profile.
func baseKnown(objects map[string]string, scalars string) map[string]string {
	objects["metadata"], objects["device"], objects["unmapped"] = "metadata", "device", "json"
	return attrs(objects, scalars+` activity_id activity_name category_uid category_name class_uid class_name type_uid type_name
		time timezone_offset severity_id severity message status_id status status_code status_detail start_time end_time duration count raw_data`)
}

func ocsfSchema() map[string]ocsfObject {
	base := []string{"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
	with := func(more ...string) []string { return append(slices.Clone(base), more...) }
	return map[string]ocsfObject{
		"0": {required: base, known: baseKnown(map[string]string{}, "")},
		"2004": {required: with("finding_info"), known: baseKnown(map[string]string{
			"finding_info": "finding_info", "evidences": "evidences", "resources": "resource_details", "remediation": "remediation",
		}, "comment confidence confidence_id confidence_score is_alert risk_level risk_level_id risk_score")},
		"5001": {required: with("device"), known: baseKnown(map[string]string{}, "")},
		"6007": {required: with("scan"), known: baseKnown(map[string]string{"scan": "scan"},
			"command_uid num_detections num_files num_folders num_network_items num_processes num_registry_items num_resolutions num_skipped_items num_trusted_items schedule_uid total")},
		"6008": {required: base, known: baseKnown(map[string]string{}, "")},
		"7001": {required: with("command_uid"), known: baseKnown(map[string]string{"remediation": "remediation", "scan": "scan"}, "command_uid")},

		"metadata": {required: []string{"product", "version"}, known: attrs(map[string]string{"product": "product"},
			"version uid event_code correlation_uid original_time log_name log_provider log_version log_level logged_time processed_time modified_time profiles labels sequence")},
		"product": {atLeastOne: []string{"name", "uid"}, known: attrs(map[string]string{}, "name uid vendor_name version lang path url_string cpe_name")},
		"device": {required: []string{"type_id"}, atLeastOne: []string{"ip", "uid", "name", "hostname", "instance_uid", "interface_uid", "interface_name"},
			known: attrs(map[string]string{}, "type_id type name uid hostname hypervisor ip mac desc domain region instance_uid")},
		"finding_info": {required: []string{"uid"}, known: attrs(map[string]string{"analytic": "analytic", "related_events": "related_event"},
			"uid title desc created_time modified_time first_seen_time last_seen_time data_sources types src_url related_events_count uid_alt")},
		"related_event": {required: []string{"uid"}, known: attrs(map[string]string{}, "uid type type_uid title desc severity severity_id")},
		"analytic":      {required: []string{"type_id"}, atLeastOne: []string{"name", "uid"}, known: attrs(map[string]string{}, "type_id type name uid desc category version algorithm")},
		"evidences":     {atLeastOne: []string{"data", "process"}, known: attrs(map[string]string{"process": "process", "data": "json"}, "name uid verdict verdict_id")},
		"resource_details": {atLeastOne: []string{"name", "uid"}, known: attrs(map[string]string{},
			"name uid type labels criticality group region version namespace hostname ip")},
		"process": {atLeastOne: []string{"pid", "uid", "cpid"}, known: attrs(map[string]string{"file": "file", "user": "user", "parent_process": "process"},
			"pid uid name cmd_line created_time terminated_time tid path integrity integrity_id working_directory")},
		"file":        {required: []string{"name", "type_id"}, known: attrs(map[string]string{"hashes": "fingerprint"}, "name path type_id type size uid")},
		"fingerprint": {required: []string{"algorithm_id", "value"}, known: attrs(map[string]string{}, "algorithm algorithm_id value")},
		"user":        {atLeastOne: []string{"account", "name", "uid"}, known: attrs(map[string]string{}, "uid name type type_id")},
		"remediation": {required: []string{"desc"}, known: attrs(map[string]string{}, "desc references")},
		"scan":        {required: []string{"type_id"}, atLeastOne: []string{"name", "uid"}, known: attrs(map[string]string{}, "type_id type name uid")},
	}
}

// checkOCSF returns what is wrong with v as an object of the given name.
func checkOCSF(schema map[string]ocsfObject, path, name string, v any) []string {
	if name == "json" {
		return nil
	}
	if list, ok := v.([]any); ok {
		var bad []string
		for i, e := range list {
			bad = append(bad, checkOCSF(schema, fmt.Sprintf("%s[%d]", path, i), name, e)...)
		}
		return bad
	}
	if name == "" {
		if _, ok := v.(map[string]any); ok {
			return []string{path + " is an object, want a scalar"}
		}
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return []string{path + " is no object"}
	}
	o, ok := schema[name]
	if !ok {
		return []string{path + ": no object " + name}
	}
	var bad []string
	for _, r := range o.required {
		if _, ok := m[r]; !ok {
			bad = append(bad, path+" lacks "+r)
		}
	}
	if len(o.atLeastOne) > 0 && !slices.ContainsFunc(o.atLeastOne, func(a string) bool { _, ok := m[a]; return ok }) {
		bad = append(bad, fmt.Sprintf("%s lacks one of %v", path, o.atLeastOne))
	}
	for k, v := range m {
		child, ok := o.known[k]
		if !ok {
			bad = append(bad, path+" has unknown "+k)
			continue
		}
		bad = append(bad, checkOCSF(schema, path+"."+k, child, v)...)
	}
	return bad
}

func TestOCSFHoldsForEveryKind(t *testing.T) {
	schema := ocsfSchema()
	want := map[Kind]string{
		FindingScan: "200401", ProcessHidden: "200401", ModuleHidden: "200401", VMSeen: "500102", VMGone: "500199",
		ScanSummary: "600703", ResponseFailed: "700101", ResponseSkipped: "700103", PolicyError: "600801", "other.kind": "99",
	}
	unknown := samples(t)[0]
	unknown.Kind = "other.kind"
	for _, e := range append(samples(t), unknown) {
		b, err := MarshalOCSF(&e, Product{Version: "1.2.3"})
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		num := func(k string) int { f, _ := v[k].(float64); return int(f) }
		class := num("class_uid")
		if bad := checkOCSF(schema, string(e.Kind), fmt.Sprint(class), v); bad != nil {
			t.Errorf("%s\n%s", strings.Join(bad, "\n"), b)
		}
		if num("type_uid") != class*100+num("activity_id") || num("category_uid") != class/1000 {
			t.Errorf("%s: type_uid %d, category_uid %d of class %d, activity %d", e.Kind, num("type_uid"), num("category_uid"), class, num("activity_id"))
		}
		if w, ok := want[e.Kind]; ok && w != fmt.Sprint(num("type_uid")) {
			t.Errorf("%s: type_uid %d, want %s", e.Kind, num("type_uid"), w)
		}
		if int64(v["time"].(float64)) != testTime.UnixMilli() {
			t.Errorf("%s: time %v", e.Kind, v["time"])
		}
		meta := v["metadata"].(map[string]any)
		if meta["version"] != "1.5.0" || meta["uid"] != e.ID || meta["product"].(map[string]any)["version"] != "1.2.3" {
			t.Errorf("%s: metadata %v", e.Kind, meta)
		}
		if id := num("severity_id"); id != e.Severity.Rank()+1 {
			t.Errorf("%s: severity_id %d of %s", e.Kind, id, e.Severity)
		}
	}
}

func TestOCSFResponses(t *testing.T) {
	for _, e := range samples(t) {
		if e.Response == nil || e.Response.Name != "alert" {
			continue
		}
		b, err := MarshalOCSF(&e, Product{})
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			TypeUID     int `json:"type_uid"`
			FindingInfo struct {
				UID           string
				RelatedEvents []struct{ UID string } `json:"related_events"`
			} `json:"finding_info"`
		}
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		if e.CauseKind == FindingScan {
			if v.TypeUID != 200402 || v.FindingInfo.UID != e.Cause {
				t.Errorf("an alert on a finding is %+v, want an update of finding %s", v, e.Cause)
			}
		} else if v.TypeUID != 200401 || v.FindingInfo.UID != e.ID || len(v.FindingInfo.RelatedEvents) != 1 {
			t.Errorf("an alert on something else is %+v, want a finding of its own", v)
		}
	}
}

func TestOCSFEncoder(t *testing.T) {
	var b strings.Builder
	enc := NewOCSFEncoder(&b, Product{Name: "n", Vendor: "v"})
	for _, e := range samples(t) {
		if err := enc.Encode(&e); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(b.String(), "\n"); got != len(samples(t)) {
		t.Errorf("%d lines for %d events", got, len(samples(t)))
	}
}
