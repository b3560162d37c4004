// Package wire is what the agent and the server say to each other:
// docs/netboot.md, section 4. It holds the messages and their limits, and no
// behaviour.
//
//	POST /v1/claim             Claim  → Answer
//	POST /v1/jobs/ID/begin     Begin  → Ack
//	POST /v1/jobs/ID/events    Events → Ack
//	POST /v1/jobs/ID/result    Result → Ack
//
// Both sides bound what they read before they decode it; what a message claims
// is not believed for being well formed.
package wire

import "encoding/json"

// Version is the version of the protocol. A server refuses others.
const Version = 1

// ServerName is the DNS name that the server's certificate is valid for,
// whatever its address.
const ServerName = "imgpipe-server"

// DHCPClass is the vendor class (option 60) of the agent's own DHCP requests.
// The server's URL comes back in option 43, sub-option DHCPServerURL.
const (
	DHCPClass     = "imgpipe:agent:v1"
	DHCPServerURL = 1
)

// Limits of bodies, in bytes.
const (
	MaxClaim   = 1 << 20
	MaxMessage = 256 << 10
	MaxAnswer  = 1 << 20
	MaxLog     = 64 << 10 // of a log tail
	MaxEvents  = 256      // in one message
)

// Times of the protocol, in seconds.
const (
	Lease     = 30 // a job is held so long after the agent's last call
	Heartbeat = 5  // an agent with a job calls at least so often
)

// Identity is what a machine is known by. Members may be empty or junk:
// docs/netboot.md, section 6.
type Identity struct {
	UUID   string   `json:"uuid,omitempty"` // SMBIOS, 8-4-4-4-12, lower case
	Serial string   `json:"serial,omitempty"`
	MACs   []string `json:"macs,omitempty"` // lower case, colons; the one it booted from first
}

// Claim asks for the machine's job.
type Claim struct {
	Version     int         `json:"version"`
	Environment Environment `json:"environment"`
	Identity    Identity    `json:"identity"`
	Inventory   Inventory   `json:"inventory"`
}

// Environment is what the agent runs in.
type Environment struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Kernel   string `json:"kernel"`   // release
	Agent    string `json:"agent"`    // version of imgpush
	Insecure bool   `json:"insecure"` // built to believe any server
	UKI      bool   `json:"uki"`      // booted as one EFI program
}

// Inventory describes the machine. Sizes are bytes.
type Inventory struct {
	Vendor       string `json:"vendor,omitempty"`
	Model        string `json:"model,omitempty"`
	Architecture string `json:"architecture"` // as GOARCH
	CPU          string `json:"cpu,omitempty"`
	Cores        int    `json:"cores,omitempty"`
	Memory       int64  `json:"memory,omitempty"`
	Firmware     string `json:"firmware"` // uefi or bios
	FirmwareInfo string `json:"firmwareInfo,omitempty"`
	SecureBoot   bool   `json:"secureBoot"`
	NICs         []NIC  `json:"nics,omitempty"`
	Disks        []Disk `json:"disks,omitempty"`
}

// NIC is a network interface.
type NIC struct {
	Name   string `json:"name"`
	MAC    string `json:"mac"`
	Driver string `json:"driver,omitempty"`
	Speed  int    `json:"speed,omitempty"` // Mbit/s
	Link   bool   `json:"link"`
}

// Disk is a disk of the machine, as `imgpush disks` tells of it.
type Disk struct {
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	SectorSize int    `json:"sectorSize"`
	Model      string `json:"model,omitempty"`
	Serial     string `json:"serial,omitempty"`
	WWN        string `json:"wwn,omitempty"`
	Transport  string `json:"transport,omitempty"`
	Rotational bool   `json:"rotational"`
	ByPath     string `json:"byPath,omitempty"`
	Holds      string `json:"holds,omitempty"` // what its signatures say, in words
}

// Action is what an agent shall do.
type Action string

// The actions.
const (
	Deploy   Action = "deploy"
	Local    Action = "local"    // restart, and boot the disk
	Wait     Action = "wait"     // ask again after RetryAfter
	Hold     Action = "hold"     // as Wait, for long: a person is needed
	Discover Action = "discover" // thanks for the inventory; then as Local
	PowerOff Action = "powerOff"
)

// Answer answers a Claim.
type Answer struct {
	Action     Action   `json:"action"`
	RetryAfter int      `json:"retryAfter,omitempty"` // seconds
	Reason     string   `json:"reason,omitempty"`     // for people
	Machine    string   `json:"machine,omitempty"`    // its name at the site
	Time       int64    `json:"time,omitempty"`       // the server's clock, seconds since 1970
	Job        *Job     `json:"job,omitempty"`        // with Deploy
	Rescue     []string `json:"rescue,omitempty"`     // with Deploy and Hold: authorized_keys lines; none: no rescue
}

// Job is what shall become of the machine. It is root on it: believed only
// from an authenticated server.
type Job struct {
	ID            string    `json:"id"` // also the instance-id of the config
	Attempt       int       `json:"attempt"`
	Lease         int       `json:"lease"` // seconds
	Image         Image     `json:"image"`
	Disk          string    `json:"disk"` // a query that means exactly one
	Destroy       []string  `json:"destroy,omitempty"`
	Retire        []string  `json:"retire,omitempty"` // disks, as queries
	Wipe          string    `json:"wipe,omitempty"`
	Config        Config    `json:"config"`
	After         After     `json:"after"`
	BootOrder     BootOrder `json:"bootOrder"`
	AllowRollback bool      `json:"allowRollback,omitempty"`
}

// Image names what is written. It is fetched from the server's /v2/ under
// Repository, by Digest.
type Image struct {
	Repository string `json:"repository"` // path under /v2/
	Digest     string `json:"digest"`     // of the manifest: sha256:…
	Reference  string `json:"reference"`  // where it comes from, as policies name it
}

// Config is the machine's NoCloud seed. The bytes are secret.
type Config struct {
	UserData      []byte   `json:"userData,omitempty"`
	MetaData      []byte   `json:"metaData,omitempty"`
	NetworkConfig []byte   `json:"networkConfig,omitempty"`
	VendorData    []byte   `json:"vendorData,omitempty"`
	Hostname      string   `json:"hostname,omitempty"`
	SSHKeys       []string `json:"sshKeys,omitempty"`
}

// After is how the machine goes on after the commit.
type After string

// The ways to go on.
const (
	Reboot  After = "reboot"
	Kexec   After = "kexec"
	PowerDn After = "poweroff"
)

// BootOrder is the order of the firmware's boot entries after the commit.
type BootOrder string

// The orders.
const (
	NetworkFirst BootOrder = "network"
	DiskFirst    BootOrder = "disk"
	KeepOrder    BootOrder = "keep"
)

// Begin asks for leave to write.
type Begin struct {
	Attempt int             `json:"attempt"`
	Disk    Disk            `json:"disk"`
	Plan    json.RawMessage `json:"plan,omitempty"` // deliver.Summary
}

// Event is something that happened. Seq counts from 1 in each attempt.
type Event struct {
	Seq     int64   `json:"seq"`
	Uptime  float64 `json:"uptime"` // seconds since the kernel started
	Step    string  `json:"step"`   // network, clock, claim, verify, look, plan, clear, write, readback, commit, efi, …
	State   string  `json:"state"`  // started, done, failed, info, warning
	Message string  `json:"message,omitempty"`
}

// Counters are how far writing got, in bytes.
type Counters struct {
	Phase    string `json:"phase"`
	Looked   int64  `json:"looked"`
	Fetched  int64  `json:"fetched"`
	Written  int64  `json:"written"`
	Zeroed   int64  `json:"zeroed"`
	ReadBack int64  `json:"readback"`
	ToFetch  int64  `json:"toFetch,omitempty"`
	ToWrite  int64  `json:"toWrite,omitempty"`
}

// Events tells what happened since the last call. Events that were told
// already are ignored by their Seq.
type Events struct {
	Attempt  int       `json:"attempt"`
	Events   []Event   `json:"events,omitempty"`
	Counters *Counters `json:"counters,omitempty"`
	Log      string    `json:"log,omitempty"` // the console's tail, at most MaxLog bytes; replaces the last one
}

// Outcome is how an attempt ended.
type Outcome string

// The outcomes.
const (
	Committed Outcome = "committed"
	Failed    Outcome = "failed"
)

// Result ends an attempt.
type Result struct {
	Attempt  int             `json:"attempt"`
	Outcome  Outcome         `json:"outcome"`
	Already  bool            `json:"already,omitempty"` // the disk held this job's commit; nothing was written
	State    string          `json:"state,omitempty"`   // of the disk: deliver.State
	Retry    bool            `json:"retry,omitempty"`   // Failed: it may pass
	Step     string          `json:"step,omitempty"`    // Failed: which
	Message  string          `json:"message,omitempty"`
	Disk     *Disk           `json:"disk,omitempty"`
	Report   json.RawMessage `json:"report,omitempty"` // deliver.Report
	Warnings []string        `json:"warnings,omitempty"`
	Log      string          `json:"log,omitempty"`
}

// Ack answers Begin, Events and Result.
type Ack struct {
	Lease  int  `json:"lease"`            // seconds
	Cancel bool `json:"cancel,omitempty"` // stop before the commit
}

// Error is the body of an answer with a status of 400 or more.
type Error struct {
	Error string `json:"error"`
	Code  Code   `json:"code,omitempty"`
}

// Code is what someone may branch on.
type Code string

// The codes.
const (
	NotYours   Code = "notYours"   // 403
	UnknownJob Code = "unknownJob" // 404
	Superseded Code = "superseded" // 409: a newer attempt holds the job
	Ended      Code = "ended"      // 409: cancelled, failed or done
	Frozen     Code = "frozen"     // 423: two claimed it
)
