package event

// OCSFVersion is the version of the OCSF schema that MarshalOCSF writes.
const OCSFVersion = "1.5.0"

// The classes used, and their categories (schema.ocsf.io/1.5.0).
const (
	classBase         = 0
	classFinding      = 2004 // events/findings/detection_finding.json
	classInventory    = 5001 // events/discovery/inventory_info.json
	classScan         = 6007 // events/application/scan_activity.json
	classAppError     = 6008 // events/application/application_error.json
	classRemediation  = 7001 // events/remediation/remediation_activity.json
	activityOther     = 99
	findingCreate     = 1
	findingUpdate     = 2
	inventoryCollect  = 2
	scanCompleted     = 2
	scanCancelled     = 3
	appErrorGeneral   = 1
	remediateIsolate  = 1
	remediateRestore  = 3
	statusSuccess     = 1
	statusFailure     = 2
	statusOther       = 99
	findingStatusNew  = 1
	findingInProgress = 2
	deviceVirtual     = 6
	analyticRule      = 1
	analyticBehaviour = 2
	fileRegular       = 1
	hashSHA256        = 3 // fingerprint.algorithm_id
	scanTypeUnknown   = 0
)

// ocsfEvent holds the attributes of all classes used; each class's required
// ones are set by its constructor.
type ocsfEvent struct {
	ActivityID   int    `json:"activity_id"`
	ActivityName string `json:"activity_name"`
	CategoryUID  int    `json:"category_uid"`
	CategoryName string `json:"category_name"`
	ClassUID     int    `json:"class_uid"`
	ClassName    string `json:"class_name"`
	TypeUID      int    `json:"type_uid"` // class_uid*100 + activity_id
	TypeName     string `json:"type_name"`
	Time         int64  `json:"time"` // milliseconds since the epoch
	SeverityID   int    `json:"severity_id"`
	Severity     string `json:"severity"`
	Message      string `json:"message"`

	StatusID     int    `json:"status_id,omitempty"`
	Status       string `json:"status,omitempty"`
	StatusDetail string `json:"status_detail,omitempty"`

	Metadata ocsfMetadata `json:"metadata"`
	Device   *ocsfDevice  `json:"device,omitempty"`

	FindingInfo *ocsfFindingInfo `json:"finding_info,omitempty"`
	Evidences   []ocsfEvidence   `json:"evidences,omitempty"`
	Resources   []ocsfResource   `json:"resources,omitempty"`
	IsAlert     bool             `json:"is_alert,omitempty"`

	CommandUID  string           `json:"command_uid,omitempty"`
	Remediation *ocsfRemediation `json:"remediation,omitempty"`

	Scan            *ocsfScan `json:"scan,omitempty"`
	Duration        *int64    `json:"duration,omitempty"` // milliseconds
	EndTime         int64     `json:"end_time,omitempty"`
	NumDetections   *int      `json:"num_detections,omitempty"`
	NumSkippedItems *uint64   `json:"num_skipped_items,omitempty"`
	Total           *uint64   `json:"total,omitempty"`

	Unmapped map[string]any `json:"unmapped,omitempty"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Product        ocsfProduct `json:"product"`
	UID            string      `json:"uid"`
	EventCode      string      `json:"event_code"`
	CorrelationUID string      `json:"correlation_uid,omitempty"`
	OriginalTime   string      `json:"original_time"`
	LogName        string      `json:"log_name"`
	LogVersion     string      `json:"log_version"`
	Profiles       []string    `json:"profiles,omitempty"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
	Version    string `json:"version,omitempty"`
}

type ocsfDevice struct {
	TypeID     int    `json:"type_id"`
	Type       string `json:"type"`
	Name       string `json:"name,omitempty"`
	UID        string `json:"uid"`
	Hypervisor string `json:"hypervisor,omitempty"`
}

type ocsfResource struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid"`
	Type string `json:"type"`
}

type ocsfFindingInfo struct {
	UID           string             `json:"uid"`
	Title         string             `json:"title"`
	Desc          string             `json:"desc,omitempty"`
	Analytic      *ocsfAnalytic      `json:"analytic,omitempty"`
	CreatedTime   int64              `json:"created_time,omitempty"`
	ModifiedTime  int64              `json:"modified_time,omitempty"`
	DataSources   []string           `json:"data_sources,omitempty"`
	Types         []string           `json:"types,omitempty"`
	RelatedEvents []ocsfRelatedEvent `json:"related_events,omitempty"`
}

type ocsfRelatedEvent struct {
	UID string `json:"uid"`
}

type ocsfAnalytic struct {
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
	Name   string `json:"name"`
	UID    string `json:"uid,omitempty"`
}

type ocsfEvidence struct {
	Process *ocsfProcess `json:"process,omitempty"`
	Data    any          `json:"data,omitempty"`
}

type ocsfProcess struct {
	PID           int          `json:"pid"`
	Name          string       `json:"name,omitempty"`
	CmdLine       string       `json:"cmd_line,omitempty"`
	CreatedTime   int64        `json:"created_time,omitempty"`
	File          *ocsfFile    `json:"file,omitempty"`
	User          *ocsfUser    `json:"user,omitempty"`
	ParentProcess *ocsfProcess `json:"parent_process,omitempty"`
}

type ocsfFile struct {
	Name   string `json:"name"`
	Path   string `json:"path"`
	TypeID int    `json:"type_id"`

	Hashes []ocsfFingerprint `json:"hashes,omitempty"`
}

type ocsfFingerprint struct {
	AlgorithmID int    `json:"algorithm_id"`
	Algorithm   string `json:"algorithm"`
	Value       string `json:"value"`
}

type ocsfUser struct {
	UID string `json:"uid"`
}

type ocsfRemediation struct {
	Desc string `json:"desc"`
}

type ocsfScan struct {
	UID    string `json:"uid"`
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
}

// ocsfSeverity maps a severity to the dictionary's severity_id and its caption.
func ocsfSeverity(s Severity) (int, string) {
	switch s {
	case Info:
		return 1, "Informational"
	case Low:
		return 2, "Low"
	case Medium:
		return 3, "Medium"
	case High:
		return 4, "High"
	case Critical:
		return 5, "Critical"
	}
	return 0, "Unknown"
}
