package node

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	const tail = " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 200"
	for _, tc := range []struct {
		name, line string
		state      byte
		start      uint64
	}{
		{"plain command", "42 (sh) S" + tail, 'S', 98765},
		{"command with blanks and brackets", "42 (a) R (b c) Z" + tail, 'Z', 98765},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, start, err := parseStat(tc.line)
			require.NoError(t, err)
			assert.Equal(t, tc.state, state)
			assert.Equal(t, tc.start, start)
		})
	}
	for _, line := range []string{"", "42 sh S", "42 (sh) S 1 2"} {
		_, _, err := parseStat(line)
		assert.Error(t, err, "line %q", line)
	}
}

func TestAliveKnowsAProcessByItsStartTime(t *testing.T) {
	self, err := FindProcess(os.Getpid())
	require.NoError(t, err)
	alive, err := self.Alive()
	require.NoError(t, err)
	assert.True(t, alive)

	impostor := Process{PID: self.PID, StartTime: self.StartTime + 1}
	alive, err = impostor.Alive()
	require.NoError(t, err)
	assert.False(t, alive, "another process with the same pid")
}

func TestAliveIsFalseOnceAProcessEnded(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	p, err := FindProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	alive, err := p.Alive()
	require.NoError(t, err)
	assert.False(t, alive)
}
