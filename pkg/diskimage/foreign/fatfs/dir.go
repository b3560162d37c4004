package fatfs

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	slot = 32 // bytes of a directory entry

	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrLong     = 0x0f

	maxDir = 65536 * slot // fatgen103: a directory's size is at most that
)

// oem is what the upper half of code page 437 means.
var oem = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")

// directory is one whose entries are still to be read.
type directory struct {
	path string
	runs []mapped.Run
}

// Tree reads the names and metadata of all files; contents are read when they
// are asked for.
func (fs *FS) Tree() (*tree.Tree, error) {
	t := tree.New()
	if err := t.Put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755}); err != nil {
		return nil, err
	}
	root := directory{"/", []mapped.Run{{At: fs.root.Off, Len: fs.root.Len}}}
	if fs.width == 32 {
		var err error
		if root.runs, err = fs.chain(fs.rootAt, maxDir); err != nil {
			return nil, fmt.Errorf("root directory: %w", err)
		}
	}
	paths := 0
	for todo := []directory{root}; len(todo) > 0; {
		d := todo[0]
		todo = todo[1:]
		found, err := fs.readDir(t, d, &paths)
		if err != nil {
			return nil, fmt.Errorf("directory %q: %w", d.path, err)
		}
		todo = append(todo, found...)
	}
	return t, nil
}

// readDir puts the entries of a directory into the tree, and returns the
// directories among them.
func (fs *FS) readDir(t *tree.Tree, d directory, paths *int) (found []directory, err error) {
	var long longName
	names := map[string]bool{}
	for _, r := range d.runs {
		b := make([]byte, r.Len)
		if err := fs.read(b, r.At); err != nil {
			return nil, err
		}
		for ; len(b) >= slot; b = b[slot:] {
			switch {
			case b[0] == 0:
				return found, nil // and everything behind it is free
			case b[0] == 0xe5:
				long = longName{}
				continue
			case b[11]&0x3f == attrLong:
				long.add(b)
				continue
			}
			name := long.name(b)
			long = longName{}
			if b[11]&attrVolume != 0 || name == "." || name == ".." {
				continue
			}
			if name == "" || strings.ContainsAny(name, "/\x00") || names[name] {
				return nil, fmt.Errorf("entry %q cannot be a name, or is there twice", name)
			}
			names[name] = true
			if *paths++; *paths > tree.MaxEntries {
				return nil, fmt.Errorf("more than %d paths", tree.MaxEntries)
			}
			sub, err := fs.put(t, path.Join(d.path, name), b)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", name, err)
			}
			if sub != nil {
				found = append(found, *sub)
			}
		}
	}
	return found, nil
}

// put makes an inode of a short entry.
func (fs *FS) put(t *tree.Tree, p string, b []byte) (*directory, error) {
	first, size := int64(le.Uint16(b[26:])), int64(le.Uint32(b[28:]))
	if fs.width == 32 {
		first |= int64(le.Uint16(b[20:])) << 16
	}
	in := &tree.Inode{Mode: 0o755, MTime: dosTime(le.Uint16(b[24:]), le.Uint16(b[22:]))}
	if b[11]&attrReadOnly != 0 {
		in.Mode = 0o555
	}
	if b[11]&attrDir == 0 {
		if size > 0 {
			in.Data = mapped.New(fs.disk, size, func() ([]mapped.Run, error) { return fs.contents(first, size) })
		}
		return nil, t.Put(p, in)
	}
	in.Kind = tree.Dir
	if err := t.Put(p, in); err != nil {
		return nil, err
	}
	runs, err := fs.chain(first, maxDir)
	return &directory{p, runs}, err
}

func (fs *FS) contents(first, size int64) ([]mapped.Run, error) {
	runs, err := fs.chain(first, size)
	if err != nil {
		return nil, err
	}
	if n := len(runs) - 1; runs[n].Off+runs[n].Len < size {
		return nil, errors.New("its clusters end before its size")
	}
	return runs, nil
}

// dosTime reads a date and a time of day, to two seconds.
func dosTime(date, clock uint16) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31), int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}

// longName collects the entries of a long name, which lie before the short one,
// the end of the name first.
type longName struct {
	units [20 * 13]uint16
	next  int // number of the entry that must follow; 0 is complete
	sum   byte
	valid bool
}

func (l *longName) add(b []byte) {
	n := int(b[0] & 0x3f)
	if b[0]&0x40 != 0 { // the last part of a name comes first
		*l = longName{next: n, sum: b[13], valid: n >= 1 && n <= 20}
	}
	if !l.valid || n != l.next || b[13] != l.sum {
		*l = longName{}
		return
	}
	for i := range 13 {
		at := 1 + 2*i // units 0-4, then 5-10 from 14, then 11-12 from 28
		if i >= 5 {
			at = 14 + 2*(i-5)
		}
		if i >= 11 {
			at = 28 + 2*(i-11)
		}
		l.units[(n-1)*13+i] = le.Uint16(b[at:])
	}
	l.next = n - 1
}

// name returns the long name that belongs to a short entry, else the short one.
func (l *longName) name(b []byte) string {
	sum := byte(0)
	for _, c := range b[:11] {
		sum = sum<<7 | sum>>1 + c
	}
	if !l.valid || l.next != 0 || sum != l.sum {
		return shortName(b)
	}
	units := l.units[:]
	for i, u := range units {
		if u == 0 || u == math.MaxUint16 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}

// shortName reads the name of 8 and 3 bytes; two bits say what is lower case,
// as Windows NT has it.
func shortName(b []byte) string {
	part := func(b []byte, lower bool) string {
		var s strings.Builder
		for _, c := range b {
			if c < 0x80 {
				s.WriteByte(c)
			} else {
				s.WriteRune(oem[c-0x80])
			}
		}
		name := strings.TrimRight(s.String(), " ")
		if lower {
			return strings.ToLower(name)
		}
		return name
	}
	base := append([]byte(nil), b[:8]...)
	if base[0] == 0x05 {
		base[0] = 0xe5 // which at this place means a free entry
	}
	name := part(base, b[12]&0x08 != 0)
	if ext := part(b[8:11], b[12]&0x10 != 0); ext != "" {
		name += "." + ext
	}
	return name
}
