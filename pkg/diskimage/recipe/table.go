package recipe

import "slices"

// The patterns that several keys share.
const (
	hostLabel   = `[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?`
	accountName = `[a-z_][a-z0-9_-]{0,31}\$?` // useradd(8); the length is checked apart
	accountID   = `0|[1-9][0-9]{0,9}`
)

var (
	nameShape    = matching("a name: a-z, 0-9 and -, not - first", `[a-z0-9][a-z0-9-]*`, 63)
	accountShape = matching("an account name: a-z, 0-9, _ and -, a letter or _ first", accountName, 32)
	idShape      = wholeNumber[uint32]("a number from 0 to 4294967294", 0, 1<<32-2)
	pathShape    = checked("an absolute path", 0, checkPath)
	unitShape    = checked("a unit name such as ssh.service", 0, checkUnit)
	consoleShape = lineOf("one line of text", 1024)
	trueOrFalse  = boolean("true", "false")
)

// commonFields is what recipes of every kind have. Only extends is not in it: it
// is resolved before.
func commonFields(base *shape) []*field {
	return []*field{
		{name: "version", doc: "Version of the recipe language.", required: true,
			shape: one(wholeNumber[int]("1, the only version there is", 1, 1))},
		{name: "kind", doc: "What the recipe makes.", required: true, shape: one(oneWord(KindDiskImage, KindEnvironment))},
		{name: "name", doc: "Name of the image. Disk and partition GUIDs derive from it.", required: true, shape: one(nameShape)},
		{name: "release", doc: "Version of the image, fit for an OCI tag.", required: true,
			shape: one(matching("fit for an OCI tag: A-Z, a-z, 0-9, _, . and -, not . or - first", `[A-Za-z0-9_][A-Za-z0-9._-]*`, 128))},
		{name: "arch", doc: "Architecture of the image.", required: true, shape: one(oneWord("amd64", "arm64"))},
		{name: "epoch", doc: "No timestamp in the image is later.", required: true, shape: one(epochShape)},
		{name: "vars", doc: "Variables: ${name} in values.", local: true, shape: &shape{kind: mapping,
			value: &scalarShape{want: "text, a number, or true or false", class: text | number | truth}}},
		{name: "base", doc: "Where the tree starts.", required: true, shape: base},
		{name: "packages", doc: "Packages to install.", shape: many("package", matching(
			"a package name, optionally with :arch, =version or /suite",
			`[a-z0-9][a-z0-9+.-]*[a-z0-9+.](?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~-]+|/[a-z0-9.-]+)?`, 255))},
	}
}

// recipeShape is the table of all there is in a recipe for a disk image.
var recipeShape = &shape{kind: mapping, fields: append(slices.Insert(commonFields(baseShape), 5,
	&field{name: "flavour", doc: "Tells images of one name apart.", shape: one(nameShape)}), []*field{
	{name: "run", doc: "Steps that run in the tree.", shape: manyMaps("step", "name", runShape)},
	{name: "files", doc: "Files, links and directories put into the tree after the packages.", shape: manyMaps("file", "path", fileShape)},
	{name: "remove", doc: "Absolute patterns of what to remove; ** is any number of names.",
		shape: many("pattern", checked("an absolute pattern", 0, checkGlob))},
	{name: "users", doc: "Accounts.", shape: manyMaps("user", "name", userShape)},
	{name: "groups", doc: "Groups.", shape: manyMaps("group", "name", groupShape)},
	{name: "systemd", doc: "Which units start.", shape: systemdShape},
	{name: "hostname", doc: "Host name until the machine gets its own.", preset: "localhost",
		shape: one(matching("a host name (RFC 1123)", hostLabel+`(?:\.`+hostLabel+`)*`, 64))},
	{name: "timezone", doc: "Name in the tz database.", preset: "UTC",
		shape: one(matching("a timezone such as Europe/Berlin", `[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*`, 64))},
	{name: "locale", doc: "Locale of the system.", preset: "C.UTF-8",
		shape: one(matching("a locale such as C.UTF-8 or de_DE.UTF-8",
			`(?:C|POSIX|[a-z]{2,3}(?:_[A-Z]{2})?)(?:\.[A-Za-z0-9-]+)?(?:@[a-z]+)?`, 64))},
	{name: "boot", doc: "How the image starts.", shape: bootShape},
	{name: "disk", doc: "Layout of the image.", required: true, shape: diskShape},
	{name: "test", doc: "What imgbuild test looks for on the console.", shape: testShape},
}...)}

var bases = []string{"debian", "oci", "tar", "dir", "disk", "recipe", "scratch"}

var baseShape = &shape{kind: mapping, oneOf: bases, rivals: bases, fields: []*field{
	{name: "debian", doc: "A tree made by Debian's package manager.", shape: &shape{kind: mapping, fields: append([]*field{
		debianFields[0],
		{name: "variant", doc: "Which packages are there from the start: mmdebstrap's word.", preset: "minbase",
			shape: one(oneWord("essential", "apt", "required", "minbase", "buildd", "important", "debootstrap", "standard"))},
	}, debianFields[1:]...)}},
	{name: "oci", doc: "The tree of a container image.", shape: &shape{kind: mapping, fields: []*field{
		{name: "ref", doc: "Reference of a registry, or oci:DIR[:TAG] relative to this recipe file.", required: true, shape: one(refShape)},
	}}},
	{name: "tar", doc: "The tree in a tar, which may be compressed.", shape: &shape{kind: mapping, fields: []*field{
		{name: "file", doc: "The tar, relative to this recipe file.", required: true, shape: one(besideShape)},
	}}},
	{name: "dir", doc: "The tree below a folder, owned by root.", shape: &shape{kind: mapping, fields: []*field{
		{name: "path", doc: "The folder, relative to this recipe file.", required: true, shape: one(besideShape)},
	}}},
	{name: "disk", doc: "The root tree of a disk that is there already.", shape: &shape{kind: mapping, oneOf: diskBases, rivals: diskBases, fields: []*field{
		{name: "file", doc: "A raw or qcow2 disk, relative to this recipe file.", shape: one(besideShape)},
		{name: "ref", doc: "An artifact of ours: in a registry, or oci:DIR[:TAG].", shape: one(refShape)},
		{name: "partition", doc: "Name or number of the root's partition; else the one that looks like a root.", shape: one(lineOf("a partition", 36))},
	}}},
	{name: "recipe", doc: "The tree that another recipe makes.", shape: &shape{kind: mapping, fields: []*field{
		{name: "file", doc: "The recipe, relative to this one.", required: true, shape: one(besideShape)},
	}}},
	{name: "scratch", doc: "Nothing: an empty tree.", shape: &shape{kind: mapping}},
}}

var diskBases = []string{"file", "ref"}

var refShape = matching("a reference such as registry.example/image:tag or oci:DIR:TAG", `[A-Za-z0-9][A-Za-z0-9._:/@+-]*`, 1024)

var runShape = &shape{kind: mapping, fields: []*field{
	{name: "name", doc: "What the step is called.", required: true, shape: one(nameShape)},
	{name: "script", doc: "For /bin/sh -eu, or what its #! line names.", required: true, shape: one(checked("a script", 0, nil))},
	{name: "after", doc: "What is there before it.", preset: "files", shape: one(oneWord("packages", "files"))},
	{name: "network", doc: "Has the network of the host.", shape: one(trueOrFalse)},
	{name: "user", doc: "Who runs it.", preset: "root", shape: one(matching("a user's name or number", accountName+`|`+accountID, 32))},
	{name: "workdir", doc: "Where it starts.", preset: "/", shape: one(pathShape)},
	{name: "env", doc: "Environment, besides the fixed one.", shape: &shape{kind: mapping,
		value: &scalarShape{want: "text, a number, or true or false", class: text | number | truth}}},
	{name: "cache", doc: "Folders that are kept from build to build and are not of the image.", shape: many("folder", checked("an absolute path", 0, checkNotRoot))},
	{name: "secrets", doc: "Texts that it reads and that never reach the image.", shape: manyMaps("secret", "name", &shape{kind: mapping, fields: []*field{
		{name: "name", doc: "As --secret names it.", required: true, shape: one(nameShape)},
		{name: "path", doc: "Where the step finds it; else /run/secrets/NAME.", shape: one(checked("an absolute path", 0, checkNotRoot))},
	}})},
	{name: "mounts", doc: "Files and folders beside the recipe that it sees, read-only.", shape: manyMaps("mount", "path", &shape{kind: mapping, fields: []*field{
		{name: "path", doc: "Where the step finds it.", required: true, shape: one(checked("an absolute path", 0, checkNotRoot))},
		{name: "source", doc: "A file or folder, relative to this recipe file.", required: true, shape: one(besideShape)},
	}})},
}}

// debianFields is where Debian's packages come from.
var debianFields = []*field{
	{name: "suite", doc: "Release of Debian: bookworm.", required: true,
		shape: one(matching("a suite such as bookworm", `[a-z0-9][a-z0-9.-]*`, 64))},
	{name: "components", doc: "Parts of the archive.", preset: "main",
		shape: many("component", matching("a component such as main", `[a-z0-9][a-z0-9./-]*`, 64))},
	{name: "mirrors", doc: "URLs or whole deb lines; without any, mmdebstrap's own.",
		shape: many("mirror", matching("a URL or a deb line", `deb(?:-src)? [^\x00-\x1f\x7f]+|[a-z][a-z0-9+.-]*:/[^\x00-\x20\x7f]+`, 1024))},
	{name: "keyring", doc: "An apt keyring: a file beside the recipe or an absolute path.", local: true,
		shape: one(checked("a file name", 4095, checkFileName))},
}

var fileShape = &shape{kind: mapping, oneOf: []string{"content", "source", "target", "directory"}, fields: []*field{
	{name: "path", doc: "Where it is in the image: absolute.", required: true, shape: one(checked("an absolute path", 0, checkNotRoot))},
	{name: "content", doc: "Text of the file.", shape: one(checked("text", 0, nil))},
	{name: "source", doc: "A file or directory, relative to this recipe file.", shape: one(besideShape)},
	{name: "target", doc: "What a symbolic link leads to.", shape: one(lineOf("what a link leads to", 4095))},
	{name: "directory", doc: "A directory.", shape: one(boolean("true"))},
	{name: "mode", doc: `Quoted octal mode: "0644".`, shape: one(modeShape)},
	{name: "owner", doc: "user:group, names or numbers.", preset: "root:root",
		shape: one(matching("an owner such as root:root or 0:0",
			`(?:`+accountName+`|`+accountID+`):(?:`+accountName+`|`+accountID+`)`, 65))},
}}

var userShape = &shape{kind: mapping, fields: []*field{
	{name: "name", doc: "Login name.", required: true, shape: one(accountShape)},
	{name: "uid", doc: "Number of the user; else the lowest free.", shape: one(idShape)},
	{name: "group", doc: "Primary group; else one of the user's own name.", shape: one(accountShape)},
	{name: "groups", doc: "Further groups.", shape: many("group", accountShape)},
	{name: "gecos", doc: "Comment, such as the full name.",
		shape: one(matching("text without : in one line", `[^:\x00-\x1f\x7f]*`, 255))},
	{name: "home", doc: "Home directory; else /home/NAME.", shape: one(pathShape)},
	{name: "shell", doc: "Login shell.", preset: "/bin/sh", shape: one(pathShape)},
	{name: "authorizedKeys", doc: "Lines of ssh's authorized_keys.", shape: many("key", checked("a line of authorized_keys", 16384, checkKey))},
	{name: "passwordHash", doc: "crypt(5) hash; ! is no login by password.", preset: "!", shape: one(checked("a crypt(5) hash", 0, checkHash))},
	{name: "system", doc: "A system user.", shape: one(trueOrFalse)},
}}

var groupShape = &shape{kind: mapping, fields: []*field{
	{name: "name", doc: "Name of the group.", required: true, shape: one(accountShape)},
	{name: "gid", doc: "Number of the group; else the lowest free.", shape: one(idShape)},
	{name: "system", doc: "A system group.", shape: one(trueOrFalse)},
}}

var systemdShape = &shape{kind: mapping, fields: []*field{
	{name: "enable", doc: "Units to enable.", shape: many("unit", unitShape)},
	{name: "disable", doc: "Units to disable.", shape: many("unit", unitShape)},
	{name: "mask", doc: "Units to mask.", shape: many("unit", unitShape)},
	{name: "defaultTarget", doc: "What the system boots to.",
		shape: one(matching("a target such as multi-user.target", `[A-Za-z0-9:_.\\@-]+\.target`, 255))},
}}

var bootShape = &shape{kind: mapping, fields: []*field{
	{name: "firmware", doc: "Firmware that starts the image; hybrid is both.", preset: "uefi", shape: one(oneWord("uefi", "bios", "hybrid"))},
	{name: "loader", doc: "What UEFI starts: the unified kernel image itself, or systemd-boot. BIOS starts GRUB.", preset: "uki", shape: one(oneWord("uki", "systemd-boot"))},
	{name: "initramfs", doc: "Whose initramfs: the distribution's, or imgbuild's own.", preset: "distribution", shape: one(oneWord("distribution", "native"))},
	{name: "cmdline", doc: "Kernel command line, without root=, ro and rw.", shape: one(checked("a kernel command line", 0, checkCmdline))},
	{name: "entries", doc: "Further entries of the boot menu.", shape: manyMaps("entry", "name", &shape{kind: mapping, fields: []*field{
		{name: "name", doc: "Name of the entry, part of file names.", required: true, shape: one(nameShape)},
		{name: "title", doc: "What the menu shows.", shape: one(lineOf("a title", 64))},
		{name: "cmdline", doc: "Kernel command line, instead of the image's.", shape: one(checked("a kernel command line", 0, checkCmdline))},
	}})},
	{name: "timeout", doc: "How long the boot menu shows; not at all by default.", shape: one(timeoutShape)},
	{name: "tries", doc: "Boots that may fail before another entry is tried.", shape: one(wholeNumber[int]("a number from 1 to 99", 1, 99))},
	{name: "secureBoot", doc: "Signs what UEFI starts.", local: true, shape: &shape{kind: mapping, fields: []*field{
		{name: "key", doc: "File of the private key, PEM.", shape: one(besideShape)},
		{name: "cert", doc: "File of its certificate, PEM.", shape: one(besideShape)},
	}}},
}}

var diskShape = &shape{kind: mapping, fields: []*field{
	{name: "size", doc: "Size of the disk, or auto.", preset: "auto", shape: one(sizeShape)},
	{name: "sectorSize", doc: "Logical sector in bytes.", preset: "512", shape: one(&scalarShape{
		want: "512 or 4096", class: number, enum: []string{"512", "4096"}, plain: true,
		parse:  func(s string) (any, error) { return map[string]int64{"512": 512, "4096": 4096}[s], nil },
		format: func(v any) string { return map[int64]string{512: "512", 4096: "4096"}[v.(int64)] },
	})},
	{name: "partitions", doc: "Partitions in disk order.", required: true, shape: manyMaps("partition", "name", partitionShape)},
}}

var partitionShape = &shape{kind: mapping, rivals: []string{"size", "free"}, fields: []*field{
	{name: "name", doc: "GPT name.", required: true,
		shape: one(matching("a partition name: A-Z, a-z, 0-9, ., _ and -, a letter or digit first", `[A-Za-z0-9][A-Za-z0-9._-]*`, 36))},
	{name: "type", doc: "What the partition is for.", required: true, shape: one(oneWord("esp", "bios", "config", "root", "verity", "swap", "data"))},
	{name: "filesystem", doc: "Filesystem to make; esp: fat32, root: ext4.", shape: one(oneWord("ext4", "erofs", "fat32", "fat16", "fat"))},
	{name: "label", doc: "Filesystem label.", shape: one(lineOf("a label", 16))},
	{name: "size", doc: "Size of the partition; auto for ext4.", shape: one(sizeShape)},
	{name: "free", doc: "Room beside what is used, in percent of it.", goName: "FreePercent", shape: one(percentShape)},
	{name: "grow", doc: "Reaches to the end of the disk it is written to.", shape: one(trueOrFalse)},
	{name: "mount", doc: "Where the image mounts it.", shape: one(pathShape)},
	{name: "readOnly", doc: "Nothing writes to it.", shape: one(trueOrFalse)},
	{name: "slot", doc: "Which of two roots it is.", shape: one(oneWord("a", "b"))},
	{name: "for", doc: "Of a verity partition: whose hashes it holds.", shape: one(lineOf("a partition's name", 36))},
}}

var testShape = &shape{kind: mapping, fields: []*field{
	{name: "timeout", doc: "How long the test may take.", preset: "5m", shape: one(timeoutShape)},
	{name: "expect", doc: "Text that the console has to show.", shape: many("text", consoleShape)},
	{name: "reject", doc: "Text that the console must not show.", shape: many("text", consoleShape)},
}}
