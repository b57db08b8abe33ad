package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Journal is a file with a JSON object a line: what a restore writes, before and after each
// transaction, synced. It has keys and UIDs, no values. A journal that does not end with
// "finished" is one of a restore that was interrupted: of its last transaction, "writing"
// without "written" means that it may be written or not, never half.
type Journal struct {
	file *os.File
	now  func() time.Time
}

// Record is a line of a journal.
type Record struct {
	Time time.Time `json:"time"`
	// Event is started, writing, written, failed or finished.
	Event     string   `json:"event"`
	Selectors []string `json:"selectors,omitempty"`
	Source    string   `json:"source,omitempty"`
	// Objects of a started restore: how many it writes; of a finished one: how many it wrote.
	Objects int `json:"objects,omitempty"`
	// Keys of a transaction, each with the UID of its object.
	Keys map[string]string `json:"keys,omitempty"`
	// Revision at which a transaction was written.
	Revision int64  `json:"revision,omitempty"`
	Error    string `json:"error,omitempty"`
}

// CreateJournal creates a journal in a folder, which is created as well.
func CreateJournal(folder string, now func() time.Time) (*Journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("--journal-dir: %w", err)
	}
	path := filepath.Join(folder, "restore-"+now().UTC().Format("20060102T150405.000")+".jsonl")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--journal-dir: %w", err)
	}
	dir, err := os.Open(folder)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--journal-dir: %w", err), file.Close())
	}
	return &Journal{file: file, now: now}, nil
}

// Path returns the file.
func (j *Journal) Path() string { return j.file.Name() }

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

func (j *Journal) append(r Record) error {
	r.Time = j.now().UTC()
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("the journal %s: %w", j.Path(), err)
	}
	return nil
}

func (j *Journal) start(p *Plan) error {
	return j.append(Record{Event: "started", Selectors: p.Selectors, Source: p.Source, Objects: p.Writes()})
}

func (j *Journal) writing(batch []*Item) error {
	keys := map[string]string{}
	for _, item := range batch {
		keys[item.Key] = item.UID
	}
	return j.append(Record{Event: "writing", Keys: keys})
}

func (j *Journal) written(batch []*Item, revision int64) error {
	return j.append(Record{Event: "written", Objects: len(batch), Revision: revision})
}

func (j *Journal) fail(err error) error {
	return errors.Join(err, j.append(Record{Event: "failed", Error: err.Error()}))
}

func (j *Journal) finish(objects int) error {
	return j.append(Record{Event: "finished", Objects: objects})
}

// ReadJournal returns the records of a journal, with an error those before a line that is none.
// A last line that is not complete is ignored: its writer was killed.
func ReadJournal(path string) ([]Record, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(content), "\n")
	var records []Record
	for i, line := range lines[:len(lines)-1] {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return records, fmt.Errorf("%s: line %d: %w", path, i+1, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// Unfinished is a journal of a restore that was interrupted.
type Unfinished struct {
	Path string
	// Selectors of the restore; none if the journal is damaged.
	Selectors []string
}

// UnfinishedJournals returns the journals of a folder whose last record is not "finished", unless
// a later restore of the same selectors finished. A journal that cannot be read counts as
// unfinished: it must not stop the restore that completes it.
func UnfinishedJournals(folder string) ([]Unfinished, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "restore-*.jsonl"))
	if err != nil {
		return nil, err
	}
	var list []Unfinished
	for _, path := range paths { // sorted, so by time
		records, err := ReadJournal(path)
		u := Unfinished{Path: path}
		if len(records) > 0 {
			u.Selectors = records[0].Selectors
		}
		switch {
		case err == nil && len(records) == 0: // created, and nothing was written
		case err == nil && records[len(records)-1].Event == "finished":
			list = slices.DeleteFunc(list, func(earlier Unfinished) bool { return slices.Equal(earlier.Selectors, u.Selectors) })
		default:
			list = append(list, u)
		}
	}
	return list, nil
}
