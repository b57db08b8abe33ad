package testnode

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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

func TestSignalIsForOneProcess(t *testing.T) {
	child := exec.Command("sleep", "60")
	require.NoError(t, child.Start())
	p, err := FindProcess(child.Process.Pid)
	require.NoError(t, err)

	require.NoError(t, Process{PID: p.PID, StartTime: p.StartTime + 1}.Signal(syscall.SIGKILL))
	alive, err := p.Alive()
	require.NoError(t, err)
	assert.True(t, alive, "the signal was for an earlier process with the same pid")

	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.ErrorContains(t, child.Wait(), "terminated")
	alive, err = p.Alive()
	require.NoError(t, err)
	assert.False(t, alive)
	require.NoError(t, p.Signal(syscall.SIGKILL), "one that has ended")
}

// killTime is what a signal may take on a loaded machine.
const killTime = 10 * time.Second

func TestAZombieDoesNotRun(t *testing.T) {
	child := exec.Command("sleep", "60")
	require.NoError(t, child.Start())
	p, err := FindProcess(child.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, p.Signal(syscall.SIGKILL))
	require.Eventually(t, func() bool {
		alive, err := p.Alive()
		return err == nil && !alive
	}, killTime, killTime/1000)
	_ = child.Wait()
}
