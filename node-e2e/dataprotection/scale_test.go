package dataprotection

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	scaleObjects = flag.Int("scale-objects", 100_000, "ConfigMaps of TestScale")
	scaleBytes   = flag.Int("scale-bytes", 10_000, "Bytes of data in each of them")
)

// TestScale measures time and memory of the verbs that read all of a large etcd.
func TestScale(t *testing.T) {
	if *output == "" {
		t.Skip("needs programs: make drill-scale")
	}
	folder, err := filepath.Abs(*output)
	require.NoError(t, err)
	*output = folder
	d := &drill{controlPlane: newControlPlane(t, folder)}
	d.journal = filepath.Join(d.dir, "journal")
	// The garbage collector's and the API server's own reading of it is not measured.
	d.controllerProcess.stop(syscall.SIGTERM)
	ctx := context.Background()

	_, err = d.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "scale"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	d.createCopies("scale", *scaleObjects, *scaleBytes)
	file := d.snapshot("scale.db")
	size := fmt.Sprintf("%d objects, %.1f GB", *scaleObjects, float64(*scaleObjects)*float64(*scaleBytes)/1e9)
	measure := func(verb, target string, r result) {
		d.figure(verb+", "+size, target, "%.1f s, %.0f MB, of it private %.0f MB", r.took.Seconds(), float64(r.rss)/1e6, float64(r.private)/1e6)
	}
	verify := d.succeed(append(d.asRoot(), "verify", file)...)
	measure("verify", "<= 60 s, <= 500 MB private", verify)
	require.NoError(t, os.Remove(file)) // a gigabyte

	start := time.Now()
	d.deleteCopies("scale", *scaleObjects)
	t.Logf("deleted after %s", time.Since(start))
	log := d.succeed("log")
	require.Contains(t, log.out, fmt.Sprint(*scaleObjects))
	measure("log", "", log)
	file = d.snapshot("after.db")
	measure("log of a file", "", d.succeed("log", file))
	require.NoError(t, os.Remove(file))
	measure("restore, the plan", "", d.succeed("restore", "namespace/scale", "-o", "json"))
	// The Namespace and all that was in it.
	restored := d.succeed("restore", "namespace/scale", "--apply", "--expect="+fmt.Sprint(*scaleObjects+1))
	measure("restore --apply", "", restored)
	response, err := d.root.Get(ctx, prefix+"configmaps/scale/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	require.EqualValues(t, *scaleObjects, response.Count)
	d.report(t)
	require.LessOrEqual(t, verify.took, time.Minute)
	// etcd's package maps the restored file with all its pages (server/storage/backend: MAP_POPULATE):
	// they count as resident, and the kernel takes them back when it needs them.
	require.LessOrEqual(t, verify.private, int64(500e6))
}

// watchPrivate returns the peak of a process's memory that is no file's, in bytes.
func watchPrivate(pid int, ended <-chan struct{}) (peak int64) {
	for {
		content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(content)) {
			var kilobytes int64
			if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kilobytes); n == 1 {
				peak = max(peak, kilobytes*1024)
			}
		}
		select {
		case <-ended:
			return peak
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// createCopies creates a ConfigMap through the API, and copies of it in etcd, which is what the API
// server would have written.
func (d *drill) createCopies(namespace string, count, bytes int) {
	ctx := context.Background()
	// The controller manager's own is not counted.
	_ = d.kube.CoreV1().ConfigMaps(namespace).Delete(ctx, "kube-root-ca.crt", metav1.DeleteOptions{})
	model, err := d.kube.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: copyName(0)}, Data: map[string]string{"text": strings.Repeat("x", bytes)},
	}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	folder := prefix + "configmaps/" + namespace + "/"
	value := d.raw(folder + model.Name)
	d.inBatches(1, count, func(i int) clientv3.Op {
		copied := strings.ReplaceAll(value, model.Name, copyName(i))
		return clientv3.OpPut(folder+copyName(i), strings.ReplaceAll(copied, string(model.UID), fmt.Sprintf("00000000-0000-4000-8000-%012d", i)))
	})
}

// deleteCopies deletes them and the Namespace past the API.
func (d *drill) deleteCopies(namespace string, count int) {
	folder := prefix + "configmaps/" + namespace + "/"
	d.inBatches(0, count, func(i int) clientv3.Op { return clientv3.OpDelete(folder + copyName(i)) })
	_, err := d.root.Delete(context.Background(), prefix+"namespaces/"+namespace)
	require.NoError(d.t, err)
}

func copyName(i int) string { return fmt.Sprintf("object-%06d", i) }

func (d *drill) inBatches(from, to int, operation func(int) clientv3.Op) {
	var batch []clientv3.Op
	for i := from; i < to; i++ {
		if batch = append(batch, operation(i)); len(batch) == 100 || i == to-1 {
			_, err := d.root.Txn(context.Background()).Then(batch...).Commit()
			require.NoError(d.t, err)
			batch = nil
		}
	}
}
