package embedded

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLaunch(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(log, []byte("from an earlier start\n"), 0o644))
	p, err := launch{path: "/bin/sh", args: []string{"-c", "echo $" + markerEnv + " $EXTRA; exit 7"}, env: []string{"EXTRA=more"}, log: log}.start(dir)
	require.NoError(t, err)
	<-p.done
	require.Equal(t, 7, p.code)
	tail := logTail(log, p.logOffset, 1)
	require.Equal(t, dir+" more", tail)
	require.NotContains(t, logTail(log, p.logOffset, 100), "earlier")
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, []byte("1\n2\n3\n4\n"), 0o644))
	require.Equal(t, "3\n4", logTail(path, 0, 2))
	require.Equal(t, "2\n3\n4", logTail(path, 2, 10))
	require.Contains(t, logTail(path+".none", 0, 1), "no such file")
}

func TestAwait(t *testing.T) {
	t.Run("returns when the probe succeeds", func(t *testing.T) {
		calls := 0
		require.NoError(t, await(t.Context(), "it", func(context.Context) error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			return nil
		}))
	})
	t.Run("says what it waited for and saw last", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := await(ctx, "rain", func(context.Context) error { return errors.New("sun") })
		require.ErrorContains(t, err, "for rain, last seen: sun")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestInParallel(t *testing.T) {
	t.Run("the first error ends the others and is returned alone", func(t *testing.T) {
		err := inParallel(t.Context(),
			func(ctx context.Context) error { <-ctx.Done(); return errors.New("consequence") },
			func(context.Context) error { return errors.New("cause") },
		)
		require.EqualError(t, err, "cause")
	})
	t.Run("the end of the caller's context ends them", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		require.ErrorContains(t, inParallel(ctx, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return errors.New("waited for it")
		}), "waited for it")
	})
	t.Run("no error", func(t *testing.T) {
		require.NoError(t, inParallel(t.Context(), func(context.Context) error { return nil }))
	})
}

func TestOwnThreadIsNeverTheFirst(t *testing.T) {
	// Enough at a time that the scheduler would choose the first thread too.
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			assert.NoError(t, onOwnThread(func() error {
				assert.NotEqual(t, unix.Getpid(), unix.Gettid())
				time.Sleep(time.Millisecond)
				return nil
			}))
		})
	}
	group.Wait()
}

func TestKillMarkedLeavesOthersAlone(t *testing.T) {
	mine, others := t.TempDir(), t.TempDir()
	start := func(dir string) *process {
		p, err := launch{path: "/bin/sleep", args: []string{"60"}, log: filepath.Join(dir, "log")}.start(dir)
		require.NoError(t, err)
		t.Cleanup(func() { _ = p.Signal(unix.SIGKILL); <-p.done })
		return p
	}
	// A folder whose name starts with the other's must not be taken for it.
	similar := mine + "-2"
	require.NoError(t, os.Mkdir(similar, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(similar) })
	target, bystanders := start(mine), []*process{start(others), start(similar)}

	found, err := killMarked(mine)
	require.NoError(t, err)
	require.Equal(t, 1, found)
	<-target.done
	for _, p := range bystanders {
		require.True(t, p.running())
	}
}
