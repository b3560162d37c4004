package ext4

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// synthetic is contents that exist nowhere: eight bytes at each multiple of
// eight follow from the seed and the offset.
type synthetic struct {
	seed uint64
	size int64
}

func (s synthetic) Size() int64 { return s.size }
func (s synthetic) Extents() []diskimage.Extent {
	return diskimage.MergeExtents([]diskimage.Extent{{Off: 0, Len: s.size}})
}
func (s synthetic) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), s.size-off)))
	var word [8]byte
	for i := 0; i < n; {
		at := off + int64(i)
		binary.LittleEndian.PutUint64(word[:], place.Mix(s.seed+uint64(at/8))|1)
		i += copy(p[i:n], word[at%8:])
	}
	if n < len(p) {
		return n, fmt.Errorf("synthetic: short read at %d", off)
	}
	return n, nil
}

// debFile is a file of a package.
type debFile struct {
	path string
	size int64
	seed uint64
	kind tree.Kind
}

// debian is a set of packages, of about the shape of a Debian server: most
// packages small, most files small, most bytes in a few large files.
type debian struct {
	packages map[string][]debFile
	names    []string
}

// newDebian makes the same packages every time: about 220 of them with 22,000
// files and 500 MB.
func newDebian() *debian {
	d := &debian{packages: map[string][]debFile{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	size := func(median, sigma float64, most int64) int64 {
		return min(most, int64(median*math.Exp(rnd.NormFloat64()*sigma)))
	}
	for i := range 220 {
		name := fmt.Sprintf("pkg%03d-%x", i, rnd.Uint32N(1<<16))
		var files []debFile
		add := func(p string, n int64, kind tree.Kind) {
			files = append(files, debFile{p, n, rnd.Uint64(), kind})
		}
		add("/usr/share/doc/"+name+"/copyright", size(3000, 0.8, 50000), tree.Regular)
		add("/usr/share/doc/"+name+"/changelog.Debian.gz", size(4000, 1, 300000), tree.Regular)
		for _, ext := range []string{"list", "md5sums", "postinst"} {
			add("/var/lib/dpkg/info/"+name+"."+ext, size(900, 1.2, 400000), tree.Regular)
		}
		switch {
		case i == 0: // a kernel and its modules
			add("/boot/vmlinuz", 8<<20, tree.Regular)
			for j := range 4000 {
				add(fmt.Sprintf("/usr/lib/modules/6.1.0/kernel/drivers/d%02d/s%d/mod%d.ko", j%60, j%7, j), size(16000, 0.9, 3<<20), tree.Regular)
			}
		case i < 6: // script languages, locales
			for j := range 1500 {
				add(fmt.Sprintf("/usr/share/%s/m%02d/file%d.pm", name, j%40, j), size(5000, 1.2, 900000), tree.Regular)
			}
		default:
			for j := range int(size(12, 1.1, 600)) {
				add(fmt.Sprintf("/usr/share/%s/data%d", name, j), size(4500, 1.4, 900000), tree.Regular)
			}
			for j := range int(size(3, 0.9, 60)) {
				add(fmt.Sprintf("/usr/bin/%s-%d", name, j), size(45000, 1.1, 30<<20), tree.Regular)
				add(fmt.Sprintf("/usr/share/man/man1/%s-%d.1.gz", name, j), size(2000, 0.8, 50000), tree.Regular)
			}
			for j := range int(size(2, 0.8, 30)) {
				add(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/lib%s-%d.so.1.2", name, j), size(250000, 1.3, 60<<20), tree.Regular)
				add(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/lib%s-%d.so.1", name, j), 20, tree.Symlink)
			}
			for j := range rnd.IntN(45) {
				add(fmt.Sprintf("/usr/share/locale/l%02d/LC_MESSAGES/%s.mo", j, name), size(9000, 1.1, 200000), tree.Regular)
			}
		}
		d.packages[name] = files
		d.names = append(d.names, name)
	}
	return d
}

func (d *debian) clone() *debian {
	c := &debian{packages: map[string][]debFile{}, names: slices.Clone(d.names)}
	for name, files := range d.packages {
		c.packages[name] = slices.Clone(files)
	}
	return c
}

func (d *debian) bytes(names ...string) (n int64) {
	for _, name := range names {
		for _, f := range d.packages[name] {
			n += f.size
		}
	}
	return n
}

// replace gives every file of a package new contents, of up to 5 % more or less.
func (d *debian) replace(name string) {
	for i := range d.packages[name] {
		f := &d.packages[name][i]
		f.seed = place.Mix(f.seed + 1)
		if f.kind == tree.Regular {
			f.size += f.size * (int64(f.seed%101) - 50) / 1000
		}
	}
}

// tree returns the packages as a tree with the clusters that
// tree.AssignClusters would give them.
func (d *debian) tree() *tree.Tree {
	t := tree.New()
	owner := map[string]string{} // of directories
	mtime := time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)
	for name, files := range d.packages {
		for _, f := range files {
			for dir := path.Dir(f.path); ; dir = path.Dir(dir) {
				if was, ok := owner[dir]; ok && was != name {
					owner[dir] = dir
				} else {
					owner[dir] = name
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	put := func(p string, in *tree.Inode) {
		in.MTime = mtime
		if err := t.Put(p, in); err != nil {
			panic(err)
		}
	}
	for dir, cluster := range owner {
		put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755, Cluster: cluster})
	}
	for name, files := range d.packages {
		for _, f := range files {
			in := &tree.Inode{Mode: 0o644, Kind: f.kind, Cluster: name}
			if f.kind == tree.Symlink {
				in.Target = strings.Repeat("l", int(f.size))
			} else {
				in.Data = synthetic{f.seed, f.size}
				// A package's files have the time of the package's build.
				in.MTime = mtime
				if f.size >= 1<<20 {
					in.Cluster = f.path
				}
			}
			put(f.path, in)
			in.MTime = mtime.Add(time.Duration(d.packages[name][0].seed % 1e15))
		}
	}
	return t
}
