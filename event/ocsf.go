package event

import (
	"path"
	"strconv"
	"strings"
)

// Product is who reports, as OCSF names it.
type Product struct {
	Name    string // "Vantage" when empty
	Vendor  string // "Vantage" when empty
	Version string // of the binary; may be empty
}

// MarshalOCSF returns e as one OCSF event on one line, without a newline:
//
//	finding.scan, process.hidden, module.hidden   Detection Finding (2004), Create
//	response.done of an alert                     Detection Finding (2004), Update of the
//	                                              finding that it answers, Create otherwise
//	other responses                               Remediation Activity (7001): Isolate (pause),
//	                                              Restore (resume), Other
//	vm.seen, vm.gone                              Device Inventory Info (5001)
//	scan.summary                                  Scan Activity (6007)
//	policy.error                                  Application Error (6008)
//	a kind unknown to this package                Base Event (0), Other
//
// A hidden process is a finding and not Process Activity (1007): that class
// tells of a process that was launched, opened, injected into or ended, and
// none of these was seen. Strings are escaped as Marshal does.
func MarshalOCSF(e *Event, p Product) ([]byte, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	o := newOCSF(normalize(e), p)
	return MarshalLine(&o)
}

func newOCSF(e *Event, p Product) ocsfEvent {
	sev, sevName := ocsfSeverity(e.Severity)
	o := ocsfEvent{
		Time:       e.Time.UnixMilli(),
		SeverityID: sev,
		Severity:   sevName,
		Metadata: ocsfMetadata{
			Version:        OCSFVersion,
			Product:        ocsfProduct{Name: orElse(p.Name, "Vantage"), VendorName: orElse(p.Vendor, "Vantage"), Version: p.Version},
			UID:            e.ID,
			EventCode:      string(e.Kind),
			CorrelationUID: e.Cause,
			OriginalTime:   e.Time.String(),
			LogName:        "vantage",
			LogVersion:     e.SchemaVersion,
		},
	}
	if e.VM != nil {
		o.Device = &ocsfDevice{TypeID: deviceVirtual, Type: "Virtual", Name: e.VM.Name, UID: e.VM.URI, Hypervisor: e.VM.Driver}
		o.Metadata.Profiles = []string{"host"}
	}
	switch e.Kind {
	case FindingScan, ProcessHidden, ModuleHidden:
		o.finding(e)
	case ResponseDone, ResponseFailed, ResponseSkipped:
		if e.Response.Name == "alert" && e.Kind == ResponseDone {
			o.alert(e)
		} else {
			o.remediation(e)
		}
	case VMSeen:
		o.classify(classInventory, inventoryCollect, "Discovery", "Device Inventory Info", "Collect")
		o.Message = "A VM was found on the host"
		o.Metadata.Profiles = nil // device is the class's own attribute
	case VMGone:
		o.classify(classInventory, activityOther, "Discovery", "Device Inventory Info", "Gone")
		o.Message = "A VM has ended"
		o.Metadata.Profiles = nil
	case ScanSummary:
		o.scan(e)
	case PolicyError:
		o.classify(classAppError, appErrorGeneral, "Application Activity", "Application Error", "General Error")
		o.Message = "Policy could not be loaded or evaluated"
		o.StatusID, o.Status, o.StatusDetail = statusFailure, "Failure", e.Policy.Error
		o.Unmapped = map[string]any{"policy": e.Policy}
	default:
		o.classify(classBase, activityOther, "Uncategorized", "Base Event", string(e.Kind))
		o.Message = "An event of a kind that this version does not know"
	}
	return o
}

// classify sets the classification; every class's category is its first digit.
func (o *ocsfEvent) classify(class, activity int, category, className, activityName string) {
	o.ClassUID, o.ClassName = class, className
	o.CategoryUID, o.CategoryName = class/1000, category
	o.ActivityID, o.ActivityName = activity, activityName
	o.TypeUID = class*100 + activity
	o.TypeName = className + ": " + activityName
}

func (o *ocsfEvent) finding(e *Event) {
	o.classify(classFinding, findingCreate, "Findings", "Detection Finding", "Create")
	o.StatusID, o.Status = findingStatusNew, "New"
	o.IsAlert = true
	o.resources(e)
	info := &ocsfFindingInfo{UID: e.ID, CreatedTime: o.Time, DataSources: []string{"guest memory"}}
	switch e.Kind {
	case FindingScan:
		o.Message = "A YARA rule matched in a VM's memory"
		info.Title = "YARA rule " + e.Finding.Rule
		info.Analytic = &ocsfAnalytic{TypeID: analyticRule, Type: "Rule", Name: e.Finding.Rule, UID: e.Finding.Namespace}
		info.Types = e.Finding.Tags
		if d, ok := e.Finding.Meta["description"].(string); ok {
			info.Desc = d
		}
	case ProcessHidden:
		o.Message = "A process is hidden from the guest's own lists"
		info.Title = "Hidden process"
		info.Analytic = &ocsfAnalytic{TypeID: analyticBehaviour, Type: "Behavioral", Name: string(e.Kind)}
	case ModuleHidden:
		o.Message = "A kernel module is hidden from the guest's own list"
		info.Title = "Hidden kernel module"
		info.Analytic = &ocsfAnalytic{TypeID: analyticBehaviour, Type: "Behavioral", Name: string(e.Kind)}
	}
	o.FindingInfo = info
	o.evidence(e)
}

// resources names the VM as what the finding affects.
func (o *ocsfEvent) resources(e *Event) {
	if e.VM != nil {
		o.Resources = []ocsfResource{{Name: e.VM.Name, UID: e.VM.URI, Type: "Virtual Machine"}}
	}
}

// evidence adds the process and, in full, what has no attribute of OCSF.
func (o *ocsfEvent) evidence(e *Event) {
	data := map[string]any{}
	if e.Finding != nil {
		data["finding"] = e.Finding
	}
	if e.Module != nil {
		data["module"] = e.Module
	}
	if e.Process != nil {
		data["process"] = e.Process
	}
	if e.Coverage != nil {
		data["coverage"] = e.Coverage
	}
	ev := ocsfEvidence{Process: newOCSFProcess(e.Process)}
	if len(data) > 0 {
		ev.Data = data
	}
	if ev.Process != nil || ev.Data != nil {
		o.Evidences = []ocsfEvidence{ev}
	}
}

func newOCSFProcess(p *Process) *ocsfProcess {
	if p == nil {
		return nil
	}
	o := &ocsfProcess{PID: p.PID, Name: p.Comm, CmdLine: strings.Join(p.Args, " ")}
	if p.StartTime != nil {
		o.CreatedTime = p.StartTime.UnixMilli()
	}
	if p.Exe != "" {
		o.File = &ocsfFile{Name: path.Base(p.Exe), Path: p.Exe, TypeID: fileRegular}
		if p.ExeSHA256 != "" {
			o.File.Hashes = []ocsfFingerprint{{AlgorithmID: hashSHA256, Algorithm: "SHA-256", Value: p.ExeSHA256}}
		}
	}
	if p.UID != nil {
		o.User = &ocsfUser{UID: strconv.FormatUint(uint64(*p.UID), 10)}
	}
	if p.PPID != 0 {
		o.ParentProcess = &ocsfProcess{PID: p.PPID}
	}
	child := o
	for i, a := range p.Parents {
		if i == 0 || child.ParentProcess == nil {
			child.ParentProcess = &ocsfProcess{PID: a.PID}
		}
		child = child.ParentProcess
		child.Name = a.Comm
		if a.Exe != "" {
			child.File = &ocsfFile{Name: path.Base(a.Exe), Path: a.Exe, TypeID: fileRegular}
		}
	}
	return o
}

func (o *ocsfEvent) alert(e *Event) {
	title := orElse(e.Response.Reason, "Alert of policy")
	info := &ocsfFindingInfo{UID: e.ID, Title: title, ModifiedTime: o.Time}
	if e.CauseKind.IsFinding() && e.Cause != "" {
		o.classify(classFinding, findingUpdate, "Findings", "Detection Finding", "Update")
		o.StatusID, o.Status = findingInProgress, "In Progress"
		info.UID = e.Cause
	} else {
		o.classify(classFinding, findingCreate, "Findings", "Detection Finding", "Create")
		o.StatusID, o.Status = findingStatusNew, "New"
		info.CreatedTime = o.Time
		if e.Cause != "" {
			info.RelatedEvents = []ocsfRelatedEvent{{UID: e.Cause}}
		}
	}
	o.Message = "Policy raised an alert"
	o.FindingInfo = info
	o.IsAlert = true
	o.resources(e)
	o.evidence(e)
	o.Unmapped = map[string]any{"response": e.Response}
}

func (o *ocsfEvent) remediation(e *Event) {
	r := e.Response
	activity, name := activityOther, r.Name
	switch r.Name {
	case "pause":
		activity, name = remediateIsolate, "Isolate"
	case "resume":
		activity, name = remediateRestore, "Restore"
	}
	o.classify(classRemediation, activity, "Remediation", "Remediation Activity", name)
	o.CommandUID = orElse(r.DecisionID, e.ID)
	o.Remediation = &ocsfRemediation{Desc: orElse(r.Reason, r.Name)}
	switch e.Kind {
	case ResponseDone:
		o.Message = "A response was carried out"
		o.StatusID, o.Status = statusSuccess, "Success"
	case ResponseFailed:
		o.Message = "A response failed"
		o.StatusID, o.Status, o.StatusDetail = statusFailure, "Failure", r.Error
	case ResponseSkipped:
		o.Message = "A response was not tried"
		o.StatusID, o.Status = statusOther, string(r.Outcome)
	}
	o.Unmapped = map[string]any{"response": r}
}

func (o *ocsfEvent) scan(e *Event) {
	o.classify(classScan, scanCompleted, "Application Activity", "Scan Activity", "Completed")
	o.Message = "A scan of a VM's memory is over"
	o.StatusID, o.Status = statusSuccess, "Success"
	s := e.Summary
	if s.Interrupted {
		o.classify(classScan, scanCancelled, "Application Activity", "Scan Activity", "Cancelled")
		o.Message = "A scan of a VM's memory was interrupted"
		o.StatusID, o.Status = statusFailure, "Failure"
	}
	ms := int64(s.DurationSeconds * 1000)
	o.Scan = &ocsfScan{UID: e.ID, Name: "memory scan", TypeID: scanTypeUnknown}
	o.Duration, o.EndTime = &ms, o.Time
	o.NumDetections, o.NumSkippedItems, o.Total = &s.Findings, &s.PagesSkipped, &s.PagesRead
	o.Unmapped = map[string]any{"summary": s}
	if e.Coverage != nil {
		o.Unmapped["coverage"] = e.Coverage
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
