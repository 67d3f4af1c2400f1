package event

// SchemaVersion is the version of the schema that this package writes.
const SchemaVersion = "1.0"

// Kind says what happened. Readers must accept kinds that they do not know:
// they come with a newer minor version.
type Kind string

// Kinds of events.
const (
	FindingScan     Kind = "finding.scan"     // a YARA rule matched: VM, Finding, and Process if it was in one
	ProcessHidden   Kind = "process.hidden"   // a process is in one of the guest's process lists only: VM, Process
	ModuleHidden    Kind = "module.hidden"    // a kernel module is not in the guest's list: VM, Module
	VMSeen          Kind = "vm.seen"          // a VM was found on the host: VM
	VMGone          Kind = "vm.gone"          // a VM that was there has ended: VM
	ScanSummary     Kind = "scan.summary"     // a scan is over: VM, Summary, Coverage
	ResponseDone    Kind = "response.done"    // a response was carried out: Response
	ResponseFailed  Kind = "response.failed"  // a response was tried and failed: Response, its Error set
	ResponseSkipped Kind = "response.skipped" // a response was not tried: Response, its Outcome says why
	PolicyError     Kind = "policy.error"     // policy could not be loaded or evaluated: Policy
)

// Kinds returns every kind of this version of the schema, in the order of its
// documentation.
func Kinds() []Kind {
	return []Kind{FindingScan, ProcessHidden, ModuleHidden, VMSeen, VMGone, ScanSummary,
		ResponseDone, ResponseFailed, ResponseSkipped, PolicyError}
}

// IsFinding reports whether k says that something bad was found in a guest.
func (k Kind) IsFinding() bool {
	return k == FindingScan || k == ProcessHidden || k == ModuleHidden
}

// IsOwn reports whether k tells of Vantage's own acts and not of a VM. Policy
// must not answer such events with a response that makes another of them.
func (k Kind) IsOwn() bool {
	return k == ResponseDone || k == ResponseFailed || k == ResponseSkipped || k == PolicyError
}

// Severity is how bad an event is. The set is closed: a new value raises the
// schema's major version.
type Severity string

// Severities, from the least to the worst.
const (
	Info     Severity = "info"
	Low      Severity = "low"
	Medium   Severity = "medium"
	High     Severity = "high"
	Critical Severity = "critical"
)

// Severities returns all severities, from the least to the worst.
func Severities() []Severity { return []Severity{Info, Low, Medium, High, Critical} }

// Rank returns s's place in Severities, counted from 0, or -1 when s is none.
func (s Severity) Rank() int {
	for i, v := range Severities() {
		if v == s {
			return i
		}
	}
	return -1
}

// Event is one thing that happened. Which of the parts are set depends on Kind;
// the others are nil. Make one with Source.New, which fills in the first
// five fields.
type Event struct {
	SchemaVersion string   `json:"schema_version"`
	ID            string   `json:"id"`   // UUIDv7 of Source; sorts by time
	Time          Time     `json:"time"` // when it happened, or was seen
	Kind          Kind     `json:"kind"`
	Severity      Severity `json:"severity"`
	Cause         string   `json:"cause,omitempty"`      // ID of the event that this one answers
	CauseKind     Kind     `json:"cause_kind,omitempty"` // its kind
	VM            *VM      `json:"vm,omitempty"`
	Process       *Process `json:"process,omitempty"`
	Module        *Module  `json:"module,omitempty"`
	Finding       *Finding `json:"finding,omitempty"`
	Summary       *Summary `json:"summary,omitempty"`
	// Coverage says what could not be read of what the event speaks of; nil
	// means that nothing was missed or that nothing was read.
	Coverage *Coverage `json:"coverage,omitempty"`
	Response *Response `json:"response,omitempty"`
	Policy   *Policy   `json:"policy,omitempty"`
}

// VM names the virtual machine.
type VM struct {
	Name        string `json:"name"`
	URI         string `json:"uri"` // opens this VM again
	Driver      string `json:"driver"`
	State       string `json:"state,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	VCPUs       int    `json:"vcpus,omitempty"`
	PID         int    `json:"pid,omitempty"` // of the VMM process on the host
}

// Process is a process of the guest. Its JSON names are those of `vantage ps`.
type Process struct {
	PID  int     `json:"pid"`
	PPID int     `json:"ppid,omitempty"`
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	Comm string  `json:"comm"`
	Exe  string  `json:"exe,omitempty"`
	// ExeSHA256 is that of the program's file, in hexadecimal; empty: not known.
	ExeSHA256     string   `json:"exe_sha256,omitempty"`
	Args          []string `json:"args,omitempty"`
	StartTime     *Time    `json:"start_time,omitempty"`
	Cgroup        string   `json:"cgroup,omitempty"`
	Container     string   `json:"container,omitempty"`
	KernelAddress VirtAddr `json:"kernel_address,omitempty"` // of its task_struct
	Hidden        bool     `json:"hidden,omitempty"`
	// Parents are the parent, its parent and so on, as far as they are known.
	Parents []Ancestor `json:"parents,omitempty"`
}

// Ancestor is a process from which another descends.
type Ancestor struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	Exe  string `json:"exe,omitempty"`
}

// Module is a kernel module of the guest. Its JSON names are those of `vantage
// modules`.
type Module struct {
	Name          string   `json:"name"`
	Base          VirtAddr `json:"base,omitempty"`
	Size          uint64   `json:"size,omitempty"`           // bytes
	KernelAddress VirtAddr `json:"kernel_address,omitempty"` // of its struct module
	Hidden        bool     `json:"hidden,omitempty"`
}

// Finding is what a scan found. Its JSON names are those of `vantage scan`.
type Finding struct {
	Rule      string         `json:"rule"`
	Namespace string         `json:"namespace,omitempty"` // of the rule: the file that it is from
	Tags      []string       `json:"tags"`
	Meta      map[string]any `json:"meta"` // strings, integers and booleans, as in the rule
	// Where is what was scanned: a mapping's path, "[heap]", "kernel",
	// "physical".
	Where    string    `json:"where"`
	Offset   uint64    `json:"offset"` // of the first match in Where, bytes
	VirtAddr *VirtAddr `json:"virt_addr,omitempty"`
	PhysAddr *PhysAddr `json:"phys_addr,omitempty"`
	Strings  []Match   `json:"strings"`
}

// Match is one string of a rule that was found.
type Match struct {
	Name     string    `json:"name"`   // the string's identifier: "$a"
	Offset   uint64    `json:"offset"` // in the finding's Where, bytes
	Length   uint64    `json:"length"` // of the match, bytes; Data may hold fewer
	VirtAddr *VirtAddr `json:"virt_addr,omitempty"`
	PhysAddr *PhysAddr `json:"phys_addr,omitempty"`
	Data     string    `json:"data"` // the matching bytes, as Escape writes them
}

// Summary is what a whole scan did. Its JSON names are those of the last line
// of `vantage scan`.
type Summary struct {
	PagesTotal      uint64  `json:"pages_total"`
	PagesRead       uint64  `json:"pages_read"`
	PagesSkipped    uint64  `json:"pages_skipped"`
	BytesScanned    uint64  `json:"bytes_scanned"`
	BytesFromCache  uint64  `json:"bytes_from_cache"`
	Findings        int     `json:"findings"`
	DurationSeconds float64 `json:"duration_seconds"`
	Interrupted     bool    `json:"interrupted,omitempty"`
}

// Coverage says what could not be read.
type Coverage struct {
	Complete      bool      `json:"complete"`
	TotalProblems int       `json:"total_problems"`
	Problems      []Problem `json:"problems,omitempty"` // the first of them
}

// Problem is one thing that could not be read or was not believed.
type Problem struct {
	What  string   `json:"what"`
	Addr  VirtAddr `json:"addr,omitempty"`
	Error string   `json:"error"`
}

// Outcome says what became of a response.
type Outcome string

// Outcomes of a response.
const (
	Done      Outcome = "done"
	Failed    Outcome = "failed"
	DryRun    Outcome = "dry_run"   // not tried: responses are only told of
	Duplicate Outcome = "duplicate" // not tried: the VM is already so
	Refused   Outcome = "refused"   // not tried: it would answer one of our own acts
)

// Response is what was done, or not done, about the event that Cause names.
type Response struct {
	Name            string         `json:"name"` // "alert", "pause", "resume"
	Reason          string         `json:"reason,omitempty"`
	Params          map[string]any `json:"params,omitempty"`
	Outcome         Outcome        `json:"outcome"`
	Error           string         `json:"error,omitempty"`
	DecisionID      string         `json:"decision_id,omitempty"`
	DurationSeconds float64        `json:"duration_seconds,omitempty"`
}

// Stage says where policy went wrong.
type Stage string

// Stages of policy.
const (
	StageLoad     Stage = "load"     // reading, parsing or compiling it
	StageEvaluate Stage = "evaluate" // evaluating it: an error of Rego, or the deadline
	StageResult   Stage = "result"   // what it returned is no decision
	StageLog      Stage = "log"      // writing the decision log
)

// Policy tells of policy itself.
type Policy struct {
	Stage    Stage  `json:"stage"`
	Path     string `json:"path,omitempty"`      // the folder or bundle
	Revision string `json:"revision,omitempty"`  // of the policy that stays in force
	Digest   string `json:"digest,omitempty"`    // of the policy that stays in force
	FailMode string `json:"fail_mode,omitempty"` // what was done instead of a decision
	Error    string `json:"error"`
	// Repeats is how many more errors of this stage came since the last event
	// that told of one; they have no events of their own.
	Repeats uint64 `json:"repeats,omitempty"`
}
