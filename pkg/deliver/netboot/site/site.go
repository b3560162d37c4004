// Package site reads SITE.yaml: which machines one `imgpush serve` looks after,
// and what becomes of them. docs/site.md is the normative text.
//
//	s, err := site.Load("SITE.yaml", site.Options{Getenv: os.LookupEnv})
//	if e, ok := errors.AsType[*site.Error](err); ok {
//		// every mistake, each as file:line:col: field: problem
//	}
//	m, err := s.Find(site.Facts{Identity: id, Inventory: &inventory})  // nil: unknown
//	config, err := s.Render(m, site.Values{Job: id, Identity: known})  // secrets
//
// It guarantees that decoding and [Schema] follow one table (the tags of the
// types), that a site with a mistake is refused as a whole, that templates of
// every machine could be filled in when it was loaded, and that no error quotes
// a secret.
package site

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/internal/strictyaml"
)

// MaxFile bounds SITE.yaml, maxTokens its tokens: ten thousand
// machines. The parser's time grows with the square of the keys of one map: who
// writes the file has it in hand.
const (
	MaxFile   = 4 << 20
	maxTokens = 400_000
)

// Error is every mistake of a SITE.yaml.
type Error = strictyaml.Error

// Duration is a time such as 30s, 15m or 1h; "none" is 0 where a field allows it.
type Duration time.Duration

// Site is what SITE.yaml says. Paths are absolute or relative to the process;
// defaults are filled in.
type Site struct {
	Version     int         `key:"version" required:"1" min:"1" max:"1" doc:"Version of the language: 1."`
	State       string      `key:"state" default:"/var/lib/imgpipe" check:"path" doc:"Directory of the database, the CA and the cache; relative to SITE.yaml."`
	Network     Network     `key:"network" doc:"Where and how machines are answered."`
	Environment Environment `key:"environment" required:"1" doc:"What machines boot into memory."`
	Trust       Trust       `key:"trust" required:"1" doc:"Who is believed about images, when a job is made. The agent decides by itself, with the keys in the environment."`
	Cache       Cache       `key:"cache" doc:"The blob cache."`
	Admin       Admin       `key:"admin" doc:"Who may give orders."`
	Unknown     string      `key:"unknown" default:"local" enum:"ignore,local,discover" doc:"What a machine gets that no entry names."`
	Defaults    Settings    `key:"defaults" doc:"What machines have where they say nothing else."`
	Machines    []Machine   `key:"machines" doc:"The machines."`

	file string
	env  func(string) (string, bool)
}

// Network says where machines are answered.
type Network struct {
	Interfaces []string `key:"interfaces" check:"interface" doc:"Network interfaces on which DHCP is answered."`
	Address    string   `key:"address" check:"address" doc:"IPv4 address by which machines reach this server; else that of the first interface."`
	Listen     string   `key:"listen" check:"address" doc:"Address to listen on for HTTP, HTTPS and TFTP; else all."`
	Names      []string `key:"names" check:"host" doc:"Further names and addresses that the certificate is valid for."`
	Ports      Ports    `key:"ports" doc:"Port numbers."`
	DHCP       DHCP     `key:"dhcp" doc:"How DHCP is answered."`
	IPXE       IPXE     `key:"ipxe" doc:"iPXE's programs, for firmware that knows PXE only."`
}

// Ports are port numbers.
type Ports struct {
	HTTP  int `key:"http" default:"80" min:"0" max:"65535" doc:"Plain HTTP; 0 is any free one."`
	HTTPS int `key:"https" default:"8443" min:"0" max:"65535" doc:"HTTPS; 0 is any free one."`
	TFTP  int `key:"tftp" default:"69" min:"1" max:"65535" doc:"TFTP."`
}

// DHCP says how DHCP is answered.
type DHCP struct {
	Mode   string   `key:"mode" default:"proxy" enum:"proxy,server,off" doc:"proxy: beside the site's own DHCP server. server: as the only one. off: not at all, and no TFTP."`
	Ranges []string `key:"ranges" check:"range" doc:"server: addresses to give away, FIRST-LAST, of the interface's own network."`
	Router string   `key:"router" check:"address" doc:"server: default gateway."`
	DNS    []string `key:"dns" check:"address" doc:"server: name servers."`
	Domain string   `key:"domain" check:"host" doc:"server: domain name."`
	NTP    []string `key:"ntp" check:"address" doc:"server: time servers."`
	Lease  Duration `key:"lease" default:"1h" doc:"server: how long an address is given away."`
}

// IPXE names iPXE's programs.
type IPXE struct {
	BIOS  string `key:"bios" default:"/usr/lib/ipxe/undionly.kpxe" check:"path" doc:"For BIOS."`
	AMD64 string `key:"amd64" default:"/usr/lib/ipxe/snponly.efi" check:"path" doc:"For UEFI on amd64."`
	ARM64 string `key:"arm64" check:"path" doc:"For UEFI on arm64."`
}

// Environment names what machines boot.
type Environment struct {
	Ref   string `key:"ref" required:"1" check:"ref" doc:"Reference of the environment: a tag, or a digest."`
	Trust Trust  `key:"trust" doc:"Who is believed about it; else as trust says."`
}

// Trust says who is believed: exactly one field is set.
type Trust struct {
	Policy   string   `key:"policy" check:"path" doc:"A policy: docs/trust.md."`
	Keys     []string `key:"keys" check:"path" doc:"Public keys (PEM): any one is enough."`
	Insecure bool     `key:"insecure" doc:"true: anyone is believed. Say so only in a lab."`
}

// IsZero reports whether nothing is said.
func (t Trust) IsZero() bool { return t.Policy == "" && len(t.Keys) == 0 && !t.Insecure }

// Cache bounds the blob cache.
type Cache struct {
	Size    Size     `key:"size" default:"50G" doc:"Most bytes on disk: 200G, 64GiB."`
	Mirrors []string `key:"mirrors" check:"host" doc:"Registries to ask first: HOST[:PORT][/PREFIX]."`
}

// Size is a number of bytes.
type Size int64

// Admin says who may give orders.
type Admin struct {
	Socket string  `key:"socket" default:"/run/imgpipe/serve.sock" check:"path" doc:"Unix socket of the admin API; relative to SITE.yaml."`
	Group  string  `key:"group" check:"word" doc:"Group that may open it; else only its owner."`
	Token  *Source `key:"token" doc:"Token with which the admin API answers on the HTTPS port too; at least 20 characters."`
}

// Settings are what a machine is to become.
type Settings struct {
	Image         string   `key:"image" check:"ref" doc:"Reference of the image. A tag is pinned to its digest when a job is made."`
	Disk          string   `key:"disk" check:"query" doc:"Query that means exactly one disk of the machine: docs/deliver.md."`
	Destroy       []string `key:"destroy" check:"signature" doc:"Protected signatures that may be destroyed: docs/deliver.md."`
	Retire        []string `key:"retire" check:"query" doc:"Queries of further disks, whose boot bytes are erased."`
	Wipe          string   `key:"wipe" default:"signatures" enum:"none,signatures,discard,zero,secure" doc:"What becomes of the disk beyond the image."`
	After         string   `key:"after" default:"reboot" enum:"reboot,kexec,poweroff" doc:"How the machine goes on after the commit."`
	BootOrder     string   `key:"bootOrder" default:"network" enum:"network,disk,keep" doc:"Order of the firmware's boot entries after the commit."`
	AllowRollback bool     `key:"allowRollback" doc:"Images older than what the disk holds are written."`
	Attempts      int      `key:"attempts" default:"3" min:"1" max:"100" doc:"Attempts that fail in a row until the machine is quarantined."`
	BootTimeout   Duration `key:"bootTimeout" default:"15m" none:"1" doc:"How long the image may take to call home after the commit; none: it is not awaited."`
	Quarantine    string   `key:"quarantine" default:"hold" enum:"hold,powerOff" doc:"What a machine does whose disk may be half written and that has no job."`
	Deploy        string   `key:"deploy" default:"manual" enum:"manual,first" doc:"first: a machine that never had a job gets one when the site is loaded."`
	Level         string   `key:"level" default:"L0" enum:"L0,L1,L2" doc:"How the environment reaches the machine: docs/netboot.md, section 3."`
	Requires      string   `key:"requires" enum:"L0,L1,L2" doc:"The least level at which the machine is given its job; else L1 where the job has secrets or may destroy, L0 where not."`
	Power         []string `key:"power" check:"argument" doc:"Command that restarts the machine into the network: program and arguments."`
	Rescue        []string `key:"rescue" check:"key" doc:"Lines of authorized_keys that may log in to the environment while it holds."`
	Config        Config   `key:"config" doc:"What cloud-init is told."`
}

// Config is what cloud-init is told. Texts are templates.
type Config struct {
	Hostname      string            `key:"hostname" default:"{{.Name}}" check:"line" doc:"Host name; a template."`
	SSHKeys       []string          `key:"sshKeys" check:"key" doc:"Lines of authorized_keys for the image's default user."`
	UserData      *Source           `key:"userData" doc:"cloud-init's user-data; a template."`
	MetaData      *Source           `key:"metaData" doc:"cloud-init's meta-data; a template."`
	NetworkConfig *Source           `key:"networkConfig" doc:"cloud-init's network-config; a template."`
	PhoneHome     string            `key:"phoneHome" default:"vendorData" enum:"vendorData,off" doc:"How the image calls home."`
	Vars          map[string]Source `key:"vars" doc:"Values for templates, as {{.Vars.NAME}}. A machine's are added to those of defaults."`
}

// Machine is one machine.
type Machine struct {
	Name     string `key:"name" required:"1" check:"name" doc:"Name at the site."`
	Match    Match  `key:"match" required:"1" doc:"Which machine it is: all that is said must hold, one of a list is enough."`
	Address  string `key:"address" check:"address" doc:"dhcp: server: the address that its (first) MAC gets."`
	Settings `key:""`
}

// Match says which machine is meant.
type Match struct {
	MAC    []string `key:"mac" check:"mac" doc:"MAC address of a network interface, or several."`
	UUID   string   `key:"uuid" check:"uuid" doc:"UUID of SMBIOS."`
	Serial string   `key:"serial" check:"serial" doc:"Serial number of SMBIOS."`
	Vendor string   `key:"vendor" check:"line" doc:"Vendor as SMBIOS has it, with * and ?."`
	Model  string   `key:"model" check:"line" doc:"Model as SMBIOS has it, with * and ?."`
	Disk   string   `key:"disk" check:"query" doc:"Query that holds for one of its disks at least."`
}

// ByInventory reports whether only an agent can tell if the machine is meant.
func (m Match) ByInventory() bool { return m.Vendor != "" || m.Model != "" || m.Disk != "" }

// identity returns what firmware can tell as well.
func (m Match) identity() wire.Identity {
	return wire.Identity{UUID: m.UUID, Serial: m.Serial, MACs: m.MAC}
}

// Source is a text, or where it is read: exactly one field is set.
type Source struct {
	Text string `key:"text" doc:"The text itself."`
	File string `key:"file" check:"path" doc:"A file, relative to SITE.yaml; read when a job is made."`
	Env  string `key:"env" check:"envname" doc:"An environment variable of imgpush serve."`
}

// Options of Load.
type Options struct {
	Getenv func(string) (string, bool) // nil: none is set
	Read   func(path string, limit int64) ([]byte, error)
}

// Load reads a site. All mistakes are reported at once, as *Error.
func Load(file string, o Options) (*Site, error) {
	if o.Read == nil {
		o.Read = readFile
	}
	b, err := o.Read(file, MaxFile)
	if err != nil {
		return nil, err
	}
	return Parse(file, b, o)
}

// Parse is Load of the bytes of a file.
func Parse(file string, b []byte, o Options) (*Site, error) {
	if o.Read == nil {
		o.Read = readFile
	}
	if o.Getenv == nil {
		o.Getenv = func(string) (string, bool) { return "", false }
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	s := &Site{file: abs, env: o.Getenv}
	d := &decoder{Reader: strictyaml.Reader{File: file, What: "site", MaxBytes: MaxFile, MaxTokens: maxTokens}, dir: filepath.Dir(abs), site: s}
	if root := d.Parse(b); root != nil {
		d.root(root)
		if len(d.Mistakes()) == 0 {
			d.whole(root, o.Read)
		}
	}
	if m := d.Mistakes(); len(m) > 0 {
		return nil, &Error{Mistakes: m}
	}
	return s, nil
}

// maxSource bounds a file that a Source names: an Answer has to hold the config.
const maxSource = 256 << 10

func readFile(path string, limit int64) (b []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, err
}
