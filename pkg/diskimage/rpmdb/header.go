package rpmdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// Package is one installed package, as its header has it.
type Package struct {
	Name, Version, Release, Arch string
	Epoch                        string   // a number; "" for none
	Source                       string   // the source package's file: bash-5.2.26-3.fc40.src.rpm
	License                      string   // in words of the distribution
	Vendor, Packager             string   // an organization; "NAME <EMAIL>"
	Summary, URL                 string   //
	Requires, Provides           []string // names without versions: libc.so.6(GLIBC_2.4), /bin/sh, config(bash)

	files files
}

// EVR is the version as RPM and dnf write it: [EPOCH:]VERSION-RELEASE.
func (p *Package) EVR() string {
	if p.Epoch != "" {
		return p.Epoch + ":" + p.Version + "-" + p.Release
	}
	return p.Version + "-" + p.Release
}

// Files yields the paths of all the package's files and directories, those too that
// are not on the disk, as rpm -ql lists them.
func (p *Package) Files() iter.Seq[string] {
	return func(yield func(string) bool) {
		dirs := splitStrings(p.files.dirs)
		names := p.files.names
		for i := 0; len(names) > 0; i++ {
			name, rest, _ := bytes.Cut(names, nul)
			names = rest
			dir := ""
			if p.files.indexes != nil {
				dir = dirs[binary.BigEndian.Uint32(p.files.indexes[4*i:])]
			}
			if !yield(dir + string(name)) {
				return
			}
		}
	}
}

// files are the lists of a header as they are there: names, and for each the index of
// its folder, or whole paths without.
type files struct {
	names, indexes, dirs []byte
	bytes                int // of all paths
}

// Tags of a header (rpm, include/rpm/rpmtag.h) that are read.
const (
	tagName         = 1000
	tagVersion      = 1001
	tagRelease      = 1002
	tagEpoch        = 1003
	tagSummary      = 1004
	tagVendor       = 1011
	tagLicense      = 1014
	tagPackager     = 1015
	tagURL          = 1020
	tagArch         = 1022
	tagOldFilenames = 1027 // whole paths, in packages of RPM 3
	tagSourceRPM    = 1044
	tagProvideName  = 1047
	tagRequireName  = 1049
	tagDirIndexes   = 1116
	tagBasenames    = 1117
	tagDirNames     = 1118
)

// Types of an entry's data.
const (
	typeInt32       = 4
	typeString      = 6
	typeStringArray = 8
	typeI18NString  = 9
)

// Of a header: bytes before the index and of one entry of it, and how many of
// these RPM takes (lib/header.c, hdrchkTags).
const (
	headerIntro = 8
	entrySize   = 16
	maxEntries  = 0xffff
)

var nul = []byte{0}

// header is the index of one: type, count, and data up to the end of the store.
type header map[uint32]entry

type entry struct {
	kind, count uint32
	data        []byte
}

// parse reads a header as a database has it: without the magic number of a package
// file. index length, data length, index, data; all of it big-endian.
func parse(b []byte) (*Package, error) {
	if len(b) < headerIntro {
		return nil, errors.New("header: cut short")
	}
	entries, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if entries == 0 || entries > maxEntries || uint64(len(b)) != headerIntro+uint64(entries)*entrySize+uint64(size) {
		return nil, fmt.Errorf("header: %d entries and %d bytes do not make %d", entries, size, len(b))
	}
	index, store := b[headerIntro:headerIntro+entries*entrySize], b[headerIntro+entries*entrySize:]
	h := header{}
	for ; len(index) > 0; index = index[entrySize:] {
		tag, offset := binary.BigEndian.Uint32(index), binary.BigEndian.Uint32(index[8:])
		if offset > size {
			return nil, fmt.Errorf("header: tag %d lies at %d of %d bytes", tag, offset, size)
		}
		// What was added at the installation comes last, and stands for what was there.
		h[tag] = entry{binary.BigEndian.Uint32(index[4:]), binary.BigEndian.Uint32(index[12:]), store[offset:]}
	}
	p := &Package{}
	for _, f := range []struct {
		tag uint32
		to  *string
	}{{tagName, &p.Name}, {tagVersion, &p.Version}, {tagRelease, &p.Release}, {tagArch, &p.Arch}, {tagSummary, &p.Summary},
		{tagVendor, &p.Vendor}, {tagLicense, &p.License}, {tagPackager, &p.Packager}, {tagURL, &p.URL}, {tagSourceRPM, &p.Source}} {
		s, err := h.strings(f.tag)
		if err != nil {
			return nil, err
		}
		first, _, _ := bytes.Cut(s, nul) // of several the one of the locale C
		*f.to = strings.ToValidUTF8(string(first), "\uFFFD")
	}
	epoch, err := h.numbers(tagEpoch)
	if err != nil {
		return nil, err
	}
	if len(epoch) > 0 {
		p.Epoch = strconv.FormatUint(uint64(binary.BigEndian.Uint32(epoch)), 10)
	}
	requires, err := h.strings(tagRequireName)
	if err != nil {
		return nil, err
	}
	provides, err := h.strings(tagProvideName)
	if err != nil {
		return nil, err
	}
	p.Requires, p.Provides = splitStrings(requires), splitStrings(provides)
	p.files, err = h.files()
	return p, err
}

// strings returns the strings of a tag, each with its zero byte; nil for none.
func (h header) strings(tag uint32) ([]byte, error) {
	e, ok := h[tag]
	if !ok {
		return nil, nil
	}
	if e.kind != typeString && e.kind != typeStringArray && e.kind != typeI18NString || e.kind == typeString && e.count != 1 {
		return nil, fmt.Errorf("header: tag %d is of type %d", tag, e.kind)
	}
	if e.count > maxStrings {
		return nil, fmt.Errorf("header: tag %d has %d strings", tag, e.count)
	}
	n := 0
	for range e.count {
		i := bytes.IndexByte(e.data[n:], 0)
		if i < 0 {
			return nil, fmt.Errorf("header: tag %d has fewer strings than its %d", tag, e.count)
		}
		n += i + 1
	}
	return e.data[:n], nil
}

// numbers returns the bytes of a tag's numbers of 32 bits.
func (h header) numbers(tag uint32) ([]byte, error) {
	e, ok := h[tag]
	if !ok {
		return nil, nil
	}
	if e.kind != typeInt32 || uint64(len(e.data)) < 4*uint64(e.count) {
		return nil, fmt.Errorf("header: tag %d has not %d numbers of type %d", tag, e.count, e.kind)
	}
	return e.data[:4*e.count], nil
}

func splitStrings(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b[:len(b)-1]), "\x00")
}

// files checks the lists of files, so that Files needs no error.
func (h header) files() (f files, err error) {
	if _, ok := h[tagBasenames]; !ok {
		f.names, err = h.strings(tagOldFilenames)
		f.bytes = len(f.names)
		return f, err
	}
	if f.names, err = h.strings(tagBasenames); err != nil {
		return f, err
	}
	if f.dirs, err = h.strings(tagDirNames); err != nil {
		return f, err
	}
	if f.indexes, err = h.numbers(tagDirIndexes); err != nil {
		return f, err
	}
	dirs := splitStrings(f.dirs)
	if uint64(len(f.indexes)) != 4*uint64(h[tagBasenames].count) || h[tagBasenames].count == 0 {
		return f, fmt.Errorf("header: %d files have %d folders", h[tagBasenames].count, len(f.indexes)/4)
	}
	names := f.names
	for i := 0; len(names) > 0; i++ {
		name, rest, _ := bytes.Cut(names, nul)
		names = rest
		dir := binary.BigEndian.Uint32(f.indexes[4*i:])
		if int64(dir) >= int64(len(dirs)) {
			return f, fmt.Errorf("header: a file is in folder %d of %d", dir, len(dirs))
		}
		n := len(dirs[dir]) + len(name)
		if n > maxPath {
			return f, fmt.Errorf("header: a path of %d bytes", n)
		}
		f.bytes += n
	}
	return f, nil
}
