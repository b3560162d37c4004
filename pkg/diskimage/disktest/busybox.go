package disktest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Busybox returns a tree in which scripts run: this machine's busybox with the libraries
// that it needs, a link to it in /bin for each of the programs, sh among them, and texts
// by their paths. All of it is of the time mtime.
func Busybox(t testing.TB, mtime time.Time, programs string, texts map[string]string) *tree.Tree {
	t.Helper()
	out := tree.New()
	put := func(p string, n *tree.Inode) {
		t.Helper()
		n.MTime = mtime
		if err := out.Put(p, n); err != nil {
			t.Fatal(err)
		}
	}
	put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	libraries, _ := exec.Command("ldd", "/bin/busybox").Output() // a static one has none
	for word := range strings.FieldsSeq("/bin/busybox " + string(libraries)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		b, err := os.ReadFile(word)
		if err != nil {
			t.Skip("apt-get install busybox-static: ", err)
		}
		put(word, &tree.Inode{Mode: 0o755, Data: diskimage.Bytes(b)})
	}
	for name := range strings.FieldsSeq("sh " + programs) {
		put("/bin/"+name, &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "busybox"})
	}
	for p, text := range texts {
		put(p, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(text))})
	}
	return out
}
