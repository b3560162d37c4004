package jobs

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver
)

// schemaVersion is PRAGMA user_version, applicationID PRAGMA application_id
// ("imgj").
const (
	schemaVersion = 1
	applicationID = 0x696d676a
)

// schema: a job's and a machine's body is JSON; what SQL asks for stands in
// columns. The index on open is rule 1 once more.
const schema = `
CREATE TABLE machines (name TEXT PRIMARY KEY, known INTEGER NOT NULL, seen INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE jobs (id TEXT PRIMARY KEY, machine TEXT NOT NULL, open INTEGER NOT NULL, created INTEGER NOT NULL,
	body BLOB NOT NULL, secrets BLOB, counters BLOB, log TEXT) STRICT;
CREATE INDEX jobs_of_machine ON jobs (machine, created);
CREATE UNIQUE INDEX one_open_job ON jobs (machine) WHERE open = 1;
CREATE TABLE events (job TEXT NOT NULL, attempt INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL,
	PRIMARY KEY (job, attempt, seq)) STRICT, WITHOUT ROWID;
`

// openDatabase opens path for this process alone, and makes it if it is not there.
func openDatabase(path string) (db *sql.DB, lock *os.File, err error) {
	lock, err = os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("%s: %w", path, ErrInUse)
		}
		return nil, nil, fmt.Errorf("%s: flock: %w", lock.Name(), err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite gives its other files the same mode
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, nil, err
	}
	q := url.Values{"_pragma": {"locking_mode(EXCLUSIVE)", "journal_mode(WAL)", "synchronous(FULL)", "secure_delete(ON)", "foreign_keys(ON)", "busy_timeout(0)"}, "_txlock": {"immediate"}}
	db, err = sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(1)
	db.SetConnMaxLifetime(0)
	if err := prepare(db); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return db, lock, nil
}

// prepare checks that the file is ours and of this version, or fills a new one.
func prepare(db *sql.DB) error {
	var app, version, tables int
	var mode string
	for _, q := range []struct {
		text string
		to   any
	}{{"PRAGMA journal_mode", &mode}, {"PRAGMA application_id", &app}, {"PRAGMA user_version", &version}, {"SELECT count(*) FROM sqlite_schema", &tables}} {
		if err := db.QueryRow(q.text).Scan(q.to); err != nil {
			return err
		}
	}
	switch {
	case mode != "wal":
		return fmt.Errorf("journal mode %s, want wal: is this a filesystem without locks or mmap?", mode)
	case tables > 0 && app != applicationID:
		return errors.New("a database of another program")
	case tables > 0 && version != schemaVersion:
		return fmt.Errorf("schema version %d; this imgpush knows %d", version, schemaVersion)
	case tables > 0:
		return nil
	}
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is left of a commit
	if _, err := tx.Exec(schema + fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", applicationID, schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// load reads all machines, and the job of each that counts: the last.
func load(db *sql.DB) (map[string]*Machine, map[string]*Job, error) {
	machines, all := map[string]*Machine{}, map[string]*Job{}
	err := rows(db, "SELECT body FROM machines", func(b []byte) error {
		m := new(Machine)
		if err := json.Unmarshal(b, m); err != nil {
			return err
		}
		machines[m.Name] = m
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("machines: %w", err)
	}
	err = rows(db, "SELECT body FROM jobs", func(b []byte) error {
		j := new(Job)
		if err := json.Unmarshal(b, j); err != nil {
			return err
		}
		if m := machines[j.Machine]; m != nil && m.Job == j.ID || j.State == Committed {
			all[j.ID] = j
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("jobs: %w", err)
	}
	return machines, all, nil
}

func rows(db *sql.DB, query string, each func([]byte) error, args ...any) (err error) {
	r, err := db.Query(query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for r.Next() {
		var b []byte
		if err := r.Scan(&b); err != nil {
			return err
		}
		if err := each(b); err != nil {
			return err
		}
	}
	return r.Err()
}
