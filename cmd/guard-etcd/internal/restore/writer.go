package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

const (
	// confirmAbove is how many objects need --expect.
	confirmAbove = 100
	// shownItems is how many objects of a group the plan shows; -o wide shows all.
	shownItems = 5
	// defaultJournalDir is where a restore is recorded.
	defaultJournalDir = "/var/log/guard-etcd"
)

// Writer is what verbs that write a plan have in common: flags, confirmation, journal, output.
type Writer struct {
	*factory.Factory
	Output factory.Output
	// Apply: the plan is written, not only shown.
	Apply bool

	journalDir string
	expect     int
	// unfinished are earlier restores that were interrupted.
	unfinished []restore.Unfinished
}

// AddFlags adds the flags to a command.
func (w *Writer) AddFlags(command *cobra.Command) {
	w.Output.AddFlags(command)
	flags := command.Flags()
	flags.BoolVar(&w.Apply, "apply", false, "Write")
	flags.IntVar(&w.expect, "expect", 0, fmt.Sprintf("The number of objects that the plan writes; needed with --apply for more than %d", confirmAbove))
	flags.StringVar(&w.journalDir, "journal-dir", defaultJournalDir, "Folder for the record of what is written")
	_ = command.MarkFlagDirname("journal-dir")
}

// Validate refuses flags that do not fit together.
func (w *Writer) Validate() error {
	if w.expect != 0 && !w.Apply {
		return errors.New("--expect goes with --apply")
	}
	return w.Output.Validate()
}

// API returns the clients of the API server that checks the plan.
func (w *Writer) API() (*restore.API, error) {
	config, err := w.Connection.RESTConfig()
	if err != nil {
		return nil, err
	}
	return restore.NewAPI(config)
}

// FindUnfinished warns about interrupted restores. What cannot be read stops nothing.
func (w *Writer) FindUnfinished() {
	unfinished, err := restore.UnfinishedJournals(w.journalDir)
	if err != nil {
		w.Warn("%v", err)
	}
	for _, u := range unfinished {
		w.Warn("an earlier restore did not finish: %s", u.Path)
	}
	w.unfinished = unfinished
}

// completes reports whether a plan is that of an interrupted restore.
func (w *Writer) completes(plan *restore.Plan) bool {
	return slices.ContainsFunc(w.unfinished, func(u restore.Unfinished) bool { return slices.Equal(u.Selectors, plan.Selectors) })
}

// Confirm refuses a plan with refusals, and one that is larger than expected.
func (w *Writer) Confirm(plan *restore.Plan) error {
	writes := plan.Writes()
	switch {
	case plan.Count(restore.Refuse) > 0:
		return fmt.Errorf("objects refused: %d; nothing is written", plan.Count(restore.Refuse))
	case w.expect != 0 && w.expect != writes:
		return fmt.Errorf("--expect=%d: the plan writes %d objects; nothing is written", w.expect, writes)
	case writes > confirmAbove && w.expect == 0:
		return fmt.Errorf("the plan writes %d objects, more than %d: --expect=%d confirms it; nothing is written", writes, confirmAbove, writes)
	}
	return nil
}

// WriteUnread writes a plan without reading it back, and returns the path of its journal: none if
// there is nothing to write. wait is that of restore.Plan.Apply.
func (w *Writer) WriteUnread(ctx context.Context, plan *restore.Plan, client *clientv3.Client, wait func(context.Context, []*restore.Item) error) (path string, err error) {
	// Killed after the last transaction, a restore has nothing left to write, but its journal
	// does not say so: this one's does.
	if plan.Writes() == 0 && !w.completes(plan) {
		return "", nil
	}
	journal, err := restore.CreateJournal(w.journalDir, w.Now)
	if err != nil {
		return "", err
	}
	defer journal.Close()
	fmt.Fprintf(w.ErrOut, "Journal: %s\n", journal.Path())
	progress := factory.StartProgress(w.ErrOut, "Writing")
	defer progress.Stop()
	return journal.Path(), plan.Apply(ctx, client, journal, progress.Set, wait)
}

// result is what -o json and yaml print after --apply.
type result struct {
	*restore.Plan
	Journal string  `json:"journal,omitempty"`
	Written int     `json:"written"`
	Seconds float64 `json:"seconds"`
	// Missing objects are written, but the API does not have them.
	Missing []*restore.Item `json:"missing,omitempty"`
}

// Write writes a plan, reads it back through the API and prints the result.
func (w *Writer) Write(ctx context.Context, plan *restore.Plan, client *clientv3.Client, api *restore.API) error {
	r := result{Plan: plan, Written: plan.Writes()}
	start := w.Now()
	journal, err := w.WriteUnread(ctx, plan, client, func(ctx context.Context, written []*restore.Item) error {
		return plan.WaitServed(ctx, api, w.Connection.Prefix(), written)
	})
	if err != nil {
		return err
	}
	if r.Journal = journal; journal != "" {
		r.Seconds = w.Now().Sub(start).Seconds()
	}
	progress := factory.StartProgress(w.ErrOut, "Reading through the API")
	missing, err := plan.Verify(ctx, api, w.Connection.Prefix())
	progress.Stop()
	if err != nil {
		return fmt.Errorf("objects written: %d; they cannot be read through the API: %w", r.Written, err)
	}
	r.Missing = missing
	return w.showResult(&r)
}

func (w *Writer) showResult(r *result) error {
	if !w.Output.HumanReadable() {
		if err := w.Output.PrintObject(w.Out, "RestoreResult", r); err != nil {
			return err
		}
	} else if r.Written == 0 {
		fmt.Fprintf(w.Out, "Nothing to write. Objects that are there: %d.\n", r.Count(restore.Present))
	} else {
		expected := r.Written + r.Count(restore.Present)
		fmt.Fprintf(w.Out, "Objects written: %d, in %s. Read through the API with their UIDs: %d of %d.\n",
			r.Written, time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), expected-len(r.Missing), expected)
	}
	if len(r.Missing) == 0 {
		return nil
	}
	names := make([]string, 0, shownItems)
	for _, item := range r.Missing[:min(len(r.Missing), shownItems)] {
		names = append(names, item.String())
	}
	return fmt.Errorf("objects that the API does not have: %d, as %s: a controller deleted them again. If they have owners, restart kube-controller-manager, whose garbage collector remembers absent owners, and run the command again", len(r.Missing), strings.Join(names, ", "))
}
