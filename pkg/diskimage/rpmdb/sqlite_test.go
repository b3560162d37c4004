package rpmdb_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the judge

	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
)

// header makes one of a package with a summary of some bytes.
func header(name string, summary int) []byte {
	var index, store []byte
	for _, s := range []struct {
		tag  uint32
		text string
	}{{1000, name}, {1001, "1"}, {1002, "2"}, {1022, "noarch"}, {1004, strings.Repeat("x", summary)}} {
		for _, v := range []uint32{s.tag, 6, uint32(len(store)), 1} {
			index = binary.BigEndian.AppendUint32(index, v)
		}
		store = append(append(store, s.text...), 0)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(index)/16))
	out = binary.BigEndian.AppendUint32(out, uint32(len(store)))
	return append(append(out, index...), store...)
}

// SQLite writes tables of several levels, rows that end on every byte around the end of a
// page, freed pages and logs, and what it says then is what is read of its files.
func TestAgainstSQLite(t *testing.T) {
	for _, size := range []int{512, 4096, 65536} {
		for _, mode := range []string{"DELETE", "WAL"} {
			for _, vacuum := range []int{0, 1} {
				name := fmt.Sprintf("pages of %d, %s, auto_vacuum %d", size, mode, vacuum)
				file := filepath.Join(t.TempDir(), "rpmdb.sqlite")
				db, err := sql.Open("sqlite", file)
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				c, err := db.Conn(context.Background()) // pragmas are of a connection
				if err != nil {
					t.Fatal(err)
				}
				run := func(query string, args ...any) {
					t.Helper()
					if _, err := c.ExecContext(t.Context(), query, args...); err != nil {
						t.Fatalf("%s: %s: %v", name, query, err)
					}
				}
				for _, s := range []string{fmt.Sprintf("PRAGMA page_size=%d", size), fmt.Sprintf("PRAGMA auto_vacuum=%d", vacuum), "PRAGMA journal_mode=" + mode, "PRAGMA synchronous=OFF",
					"PRAGMA wal_autocheckpoint=0", "CREATE TABLE before (a, b)", "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)", "CREATE INDEX i ON before (a)", "BEGIN"} {
					run(s)
				}
				rows := 300
				if size > 4096 {
					rows = 40
				}
				for i := range rows {
					run("INSERT INTO Packages (hnum, blob) VALUES (?, ?)", 1+i*i, header(fmt.Sprintf("p%d", i), size-300+i))
				}
				run("COMMIT")
				check := func() {
					t.Helper()
					want := 0
					if err := c.QueryRowContext(t.Context(), "SELECT count(*) FROM Packages").Scan(&want); err != nil {
						t.Fatal(err)
					}
					files := map[string][]byte{}
					for _, suffix := range []string{"", "-wal", "-journal"} {
						b, err := os.ReadFile(file + suffix)
						if err == nil {
							files["/var/lib/rpm/rpmdb.sqlite"+suffix] = b
						} else if !errors.Is(err, fs.ErrNotExist) {
							t.Fatal(err)
						}
					}
					got, err := rpmdb.Read(newTree(t, files))
					if err != nil || len(got.Packages) != want {
						t.Fatalf("%s: %d packages, want %d: %v", name, len(got.Packages), want, err)
					}
					for _, p := range got.Packages {
						var n int
						if _, err := fmt.Sscanf(p.Name, "p%d", &n); err != nil || len(p.Summary) != size-300+n {
							t.Fatalf("%s: %s has %d bytes: %v", name, p.Name, len(p.Summary), err)
						}
					}
				}
				check() // with a log all of it is there
				run("DELETE FROM Packages WHERE hnum % 3 = 0")
				check()
				run("PRAGMA wal_checkpoint(PASSIVE)")
				run("DELETE FROM Packages WHERE hnum % 2 = 0") // over the beginning of the log
				check()
			}
		}
	}
}
