package customize

import (
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// Whatever a package puts into a unit file: enabling it ends, and either is a
// mistake, or can be done again without a change.
func FuzzUnit(f *testing.F) {
	f.Add("x.service", "[Install]\nWantedBy=a.target\nAlias=y.service\nAlso=z.service x.service\n", "-> x.service", "")
	f.Add("x@.service", "[Install]\nWantedBy=%i.target\nDefaultInstance=%p-%j\n", "[Install]\nAlso=x@b.service\n", "[Install]\nWantedBy=\nRequiredBy=\"a b\" 'c.target' \\\n d.target")
	f.Add("x@i.service", "-> z.service", "-> ../x@.service", "\\")
	f.Add("x.service", "-> /etc/systemd/system/x.service", "-> /dev/null", "[")
	f.Fuzz(func(t *testing.T, name, unit, other, dropIn string) {
		if _, ok := parseUnitName(name); !ok {
			return
		}
		tr := newTree(t, map[string]string{u + name: unit, u + "z.service": other, u + "x.service.d/a.conf": dropIn})
		r := &recipe.Recipe{Epoch: epoch, Systemd: recipe.Systemd{Enable: []string{name}, Disable: []string{"z.service"}}}
		if Apply(tr, r) != nil {
			return
		}
		once := dump(t, tr)
		if err := Apply(tr, r); err != nil {
			t.Fatalf("applied again: %v", err)
		}
		if twice := dump(t, tr); twice != once {
			t.Fatalf("applied twice differs from once:\n%s", diff(once, twice))
		}
	})
}

// Whatever the account files of a tree hold, their lines stay but for the ones
// that the recipe means, and a second Apply changes nothing.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "root:*:1::::::\n", "root:x:0:\nsudo:x:27:a,b\n", "a:100000:65536\n", "UID_MIN 1000\n")
	f.Add("", "", "", "", "UID_MAX 0x10\nUID_MIN 020\nSUB_UID_MAX 4294967295\n")
	f.Add("ops:x:1:1", "ops:", "ops:x", "x:4294967295:4294967295\n::\n", "SYS_UID_MAX 5\nSYS_UID_MIN 9\n")
	f.Add("+\n\n:::::::\nops\n", "+ops", "sudo:x:27:,,ops", "ops:1:1", "GID_MAX 4294967295\nGID_MIN 4294967295\n")
	f.Fuzz(func(t *testing.T, passwd, shadow, group, subuid, defs string) {
		tr := newTree(t, map[string]string{
			"/etc/passwd": passwd, "/etc/shadow": shadow, "/etc/group": group, "/etc/gshadow": group,
			"/etc/subuid": subuid, "/etc/login.defs": defs, "/bin/sh": "sh",
		})
		r := &recipe.Recipe{
			Epoch:  epoch,
			Groups: []recipe.Group{{Name: "g"}, {Name: "s", System: true}},
			Users:  []recipe.User{{Name: "ops", Groups: []string{"g"}, AuthorizedKeys: []string{key1}}, {Name: "sys", System: true}},
		}
		if Apply(tr, r) != nil {
			return
		}
		once := dump(t, tr)
		if err := Apply(tr, r); err != nil {
			t.Fatalf("applied again: %v", err)
		}
		if twice := dump(t, tr); twice != once {
			t.Fatalf("applied twice differs from once:\n%s", diff(once, twice))
		}
	})
}
