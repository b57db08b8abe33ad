//go:build unix

package guard

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
)

// Invariant 2: evidence is seen in the watch, and the watch waits for no disk. A pipe
// with no reader in the place of the file that is to be written hangs as a frozen disk
// does.
func TestInvariantWatchTouchesNoDisk(t *testing.T) {
	n := newNodeCounters(t)
	pod, other := protectedPod("p"), plainPod("other")
	ObserveSource(apiSource, []*v1.Pod{pod, other})
	n.start(pod)
	pipe := filepath.Join(n.dir, "pods", "p-uid.pod.new")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	restored := func() {
		if reader, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
			t.Cleanup(func() { _ = reader.Close() })
		}
	}
	defer restored()
	source, err := watchSource(t, n.Guard, watchOf(deleted(pod), deleted(other)))
	require.NoError(t, err)
	for range 2 {
		select {
		case <-source.ResultChan():
		case <-time.After(5 * time.Second):
			restored()
			t.Fatal("an event waits for the disk")
		}
	}
	assert.Equal(t, Terminating, n.state(pod))
}
