package vm

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The agent runs here, in place of a machine.
func TestGuest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	require.NoError(t, os.Mkdir(dir, 0o755))
	start := func(g *Guest) {
		agent := exec.Command("bash", "guest/agent.sh", dir)
		require.NoError(t, agent.Start())
		go func() {
			defer close(g.ended)
			g.result = agent.Wait()
		}()
	}
	g := &Guest{dir: dir, ended: make(chan struct{})}
	start(g)
	require.NoError(t, g.awaitBoot(t.Context()))

	output, err := g.Exec(t.Context(), "echo one; echo two >&2")
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n", output)

	output, err = g.Exec(t.Context(), "echo three; exit 7")
	require.ErrorContains(t, err, "exit code 7: three")
	require.Equal(t, "three\n", output)

	// A script that waits does not hold up the next one.
	waits := make(chan error, 1)
	go func() {
		_, err := g.Exec(t.Context(), "until [[ -e go ]]; do sleep 0.1; done")
		waits <- err
	}()
	_, err = g.Exec(t.Context(), "touch go")
	require.NoError(t, err)
	require.NoError(t, <-waits)

	require.NoError(t, g.Stop(t.Context()))
	_, err = g.Exec(t.Context(), "true")
	require.ErrorContains(t, err, "the machine has ended")
}

func TestRunRefusesWhatTheGuestCannotRead(t *testing.T) {
	_, err := Run(context.Background(), Config{Command: []string{"program", "two\nlines"}, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), `"two\nlines"`) {
		t.Errorf("Run with a newline in an argument: error %v, want one that quotes the argument", err)
	}
}
