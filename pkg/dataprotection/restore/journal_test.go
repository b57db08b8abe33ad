package restore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAJournalOfAnInterruptedRestoreIsFound(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	journal := func(selector string) *Journal {
		now = now.Add(time.Second)
		j, err := CreateJournal(folder, func() time.Time { return now })
		require.NoError(t, err)
		t.Cleanup(func() { _ = j.Close() })
		require.NoError(t, j.start(&Plan{Selectors: []string{selector}}))
		return j
	}
	batch := []*Item{item("configmaps/default/a", "ConfigMap", "default", "a")}

	killed := journal("crd/a")
	require.NoError(t, killed.writing(batch))
	// The process was killed while it wrote a line.
	_, err := killed.file.WriteString(`{"time":"20`)
	require.NoError(t, err)
	failed := journal("crd/b")
	require.ErrorContains(t, failed.fail(errors.New("no quorum")), "no quorum")
	unfinished, err := UnfinishedJournals(folder)
	require.NoError(t, err)
	require.Equal(t, []Unfinished{{killed.Path(), []string{"crd/a"}}, {failed.Path(), []string{"crd/b"}}}, unfinished)

	again := journal("crd/a")
	require.NoError(t, again.writing(batch))
	require.NoError(t, again.written(batch, 42))
	require.NoError(t, again.finish(1))
	unfinished, err = UnfinishedJournals(folder)
	require.NoError(t, err)
	require.Equal(t, []Unfinished{{failed.Path(), []string{"crd/b"}}}, unfinished, "a later run of the same completed it")

	records, err := ReadJournal(again.Path())
	require.NoError(t, err)
	require.Len(t, records, 4)
	require.Equal(t, Record{Time: now, Event: "writing", Keys: map[string]string{testPrefix + "configmaps/default/a": "configmaps/default/a"}}, records[1])
	info, err := os.Stat(again.Path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestADamagedJournalIsReportedAndStopsNothing(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "restore-20260102T030405.000.jsonl")
	require.NoError(t, os.WriteFile(path, []byte("{\"event\":\"started\",\"selectors\":[\"crd/a\"]}\n\x00\x00\n"), 0o600))
	_, err := ReadJournal(path)
	require.ErrorContains(t, err, "line 2")
	unfinished, err := UnfinishedJournals(folder)
	require.NoError(t, err)
	require.Equal(t, []Unfinished{{path, []string{"crd/a"}}}, unfinished)
}
