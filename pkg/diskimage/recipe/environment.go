package recipe

import "fmt"

// KindEnvironment is the kind of a recipe for what machines boot from the network.
const KindEnvironment = "Environment"

// Environment is what a recipe of that kind says besides name, release, arch,
// epoch, base and packages.
type Environment struct {
	Modules    Modules
	Firmware   []string // modules whose firmware is carried, or patterns below /lib/firmware
	Agent      string   // path of the program that is /init; "" is imgpush beside imgbuild
	Trust      Trust
	Server     Server
	Jobs       string // authenticated, insecure
	Rescue     bool
	Cmdline    string
	SecureBoot SecureBoot
}

// Modules says which kernel modules are carried: classes of docs/environment.md,
// and names.
type Modules struct {
	Storage []string
	Network []string
	Extra   []string
}

// Trust says whose images are written: the files of public keys, or of a policy,
// as paths that the process can open.
type Trust struct {
	Keys   []string
	Policy string
}

// Server is where jobs come from.
type Server struct {
	URL string
	CA  []string // files of certificates, as paths that the process can open
}

// SecureBoot says with what the UKI is signed: both paths, or neither.
type SecureBoot struct {
	Key  string
	Cert string
}

// StorageClasses and NetworkClasses are the classes of kernel modules that a
// recipe may name; docs/environment.md says what is in them.
var (
	StorageClasses = []string{"ahci", "mmc", "nvme", "raid", "scsi", "usb", "virtio"}
	NetworkClasses = []string{"cloud", "server", "usb", "virtio"}
)

var (
	besideShape = &scalarShape{want: "a file name", class: text, max: 4095, check: checkFileName, beside: true}
	moduleShape = matching("a module's name", `[A-Za-z0-9][A-Za-z0-9_-]*`, 64)
)

// environmentShape is the table of all there is in a recipe of kind Environment.
var environmentShape = &shape{kind: mapping, fields: append(commonFields(environmentBase), []*field{
	{name: "modules", doc: "Kernel modules, with what they need.", shape: &shape{kind: mapping, fields: []*field{
		{name: "storage", doc: "Classes of drivers for disks.", shape: many("class", oneWord(StorageClasses...))},
		{name: "network", doc: "Classes of drivers for networks.", shape: many("class", oneWord(NetworkClasses...))},
		{name: "extra", doc: "Further modules by name.", shape: many("module", moduleShape)},
	}}},
	{name: "firmware", doc: "Modules whose firmware is carried, or patterns below /lib/firmware.",
		shape: many("firmware", matching("a module's name, or a pattern below /lib/firmware", `[A-Za-z0-9][A-Za-z0-9_./*?+-]*`, 255))},
	{name: "agent", doc: "The program that is /init; else imgpush beside imgbuild.", local: true, shape: one(besideShape)},
	{name: "trust", doc: "Whose images are written.", shape: &shape{kind: mapping, rivals: []string{"keys", "policy"}, fields: []*field{
		{name: "keys", doc: "Files of public keys: what any one of them signed.", shape: many("key", besideShape)},
		{name: "policy", doc: "File of a policy (docs/trust.md).", shape: one(besideShape)},
	}}},
	{name: "server", doc: "Where jobs come from.", shape: &shape{kind: mapping, fields: []*field{
		{name: "url", doc: "https://HOST[:PORT]; a hint.", shape: one(matching("https://HOST[:PORT]", `https?://[A-Za-z0-9.:\[\]-]+/?`, 255))},
		{name: "ca", doc: "Files of certificates that the server's is under.", shape: many("certificate", besideShape)},
	}}},
	{name: "jobs", doc: "Which jobs are obeyed.", preset: "authenticated", shape: one(oneWord("authenticated", "insecure"))},
	{name: "rescue", doc: "A job may open a rescue shell.", shape: one(trueOrFalse)},
	{name: "cmdline", doc: "Kernel command line.", preset: "console=tty0 console=ttyS0,115200 panic=10",
		shape: one(checked("a kernel command line", 0, checkCmdline))},
	{name: "secureBoot", doc: "Signs the UKI.", local: true, shape: &shape{kind: mapping, fields: []*field{
		{name: "key", doc: "File of the private key, PEM.", shape: one(besideShape)},
		{name: "cert", doc: "File of its certificate, PEM.", shape: one(besideShape)},
	}}},
}...)}

var environmentBase = &shape{kind: mapping, oneOf: []string{"debian"}, fields: []*field{
	{name: "debian", doc: "Packages of Debian, unpacked and not installed.", shape: &shape{kind: mapping, fields: debianFields}},
}}

// tables are the shapes by kind.
var tables = map[string]*shape{KindDiskImage: recipeShape, KindEnvironment: environmentShape}

// tableOf returns the table that the layers' kind asks for. A kind that is wrong,
// or missing, is reported by that of images.
func tableOf(layers []*node) *shape {
	s := recipeShape
	for _, l := range layers {
		if e := l.get("kind"); e != nil && e.value.kind == scalar && tables[e.value.text] != nil {
			s = tables[e.value.text]
		}
	}
	return s
}

// table returns the table that r follows.
func (r *Recipe) table() *shape {
	if s := tables[r.Kind]; s != nil {
		return s
	}
	return recipeShape
}

// environment checks what single values do not show, and resolves file names.
func (c *checker) environment() {
	r := c.r
	file := func(field string, p *string) {
		if *p != "" {
			*p = c.beside(field, *p)
			c.exists(field, *p, false)
		}
	}
	for i := range r.Trust.Keys {
		file(fmt.Sprintf("trust.keys[%d]", i), &r.Trust.Keys[i])
	}
	for i := range r.Server.CA {
		file(fmt.Sprintf("server.ca[%d]", i), &r.Server.CA[i])
	}
	file("trust.policy", &r.Trust.Policy)
	file("agent", &r.Agent)
	file("secureBoot.key", &r.SecureBoot.Key)
	file("secureBoot.cert", &r.SecureBoot.Cert)
	if len(r.Trust.Keys) > 0 && r.Trust.Policy != "" {
		c.report("trust.policy", "excludes keys, which a policy names itself; give one")
	}
	if (r.SecureBoot.Key == "") != (r.SecureBoot.Cert == "") {
		c.report("secureBoot", "needs both key and cert")
	}
	if r.Jobs == "insecure" && len(r.Server.CA) > 0 {
		c.report("jobs", "insecure takes a job from anybody; with server.ca leave it out")
	}
}
