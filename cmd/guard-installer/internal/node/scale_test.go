package node

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/pkg/rollout"
)

var (
	fleetSize = flag.Int("fleet", 0, "nodes of the fleet whose requests TestRequestsOfAFleet counts, 0: it is skipped")
	tablePath = flag.String("table", "", "write the table of TestRequestsOfAFleet there")
)

// TestRequestsOfAFleet runs the installers of a fleet and counts their requests to the API
// server, which is client-go's fake one: what is counted are requests, not their cost. The
// clock is that of a bubble, so that an hour takes minutes. The nodes have no kubelets: a
// world each is behind them.
func TestRequestsOfAFleet(t *testing.T) {
	if *fleetSize == 0 {
		t.Skip("it needs -fleet; see make bench-rollout")
	}
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	var table strings.Builder
	fmt.Fprintf(&table, "| %d nodes | requests a second | of them writes of a Node | nodes changed a minute |\n|---|---|---|---|\n", *fleetSize)
	for _, c := range []struct {
		name   string
		target rollout.Target
		slots  int
		paused bool
		// whole is how long the fleet runs, during the end of that in which it is counted.
		whole, during time.Duration
		// most is how many requests a second there may be.
		most float64
	}{
		{"done", rollout.Stock, 1, false, 45 * time.Minute, 10 * time.Minute, 20},
		{"observed", rollout.Observe, 1, false, 45 * time.Minute, 10 * time.Minute, 20},
		{"waiting, the pool is paused", rollout.Audit, 1, true, 40 * time.Minute, 20 * time.Minute, 50},
		{"at work, 1 slot", rollout.Audit, 1, false, 30 * time.Minute, 10 * time.Minute, 50},
		{"at work, 100 slots", rollout.Audit, 100, false, 22 * time.Minute, 3 * time.Minute, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &scaleFleet{pool: rollout.Pool{Name: "blue", Selector: "pool=blue", MaxUnavailable: c.slots}, paused: c.paused}
			f.request = rollout.Request{Target: c.target, Image: "image"}
			synctest.Test(t, func(t *testing.T) { f.run(t, c.whole, c.during) })
			seconds := c.during.Seconds()
			all, writes := 0, 0
			for _, kind := range slices.SortedFunc(maps.Keys(f.requests), func(a, b string) int { return cmp.Compare(f.requests[b], f.requests[a]) }) {
				all += f.requests[kind]
				if kind == "patch nodes" {
					writes += f.requests[kind]
				}
				t.Logf("%8.2f/s %s", float64(f.requests[kind])/seconds, kind)
			}
			fmt.Fprintf(&table, "| %s | %.1f | %.1f | %.0f |\n", c.name, float64(all)/seconds, float64(writes)/seconds, float64(f.changed)/c.during.Minutes())
			if rate := float64(all) / seconds; rate > c.most {
				t.Errorf("%.1f requests a second, at most %.0f", rate, c.most)
			}
		})
	}
	t.Log("\n" + table.String())
	if *tablePath != "" {
		require.NoError(t, os.WriteFile(*tablePath, []byte(table.String()), 0o644))
	}
}

// scaleFleet is a fleet whose installers run at the same time.
type scaleFleet struct {
	pool    rollout.Pool
	request rollout.Request
	paused  bool

	mutex    sync.Mutex
	counting bool
	// requests is how many there were, by verb and resource.
	requests map[string]int
	// changed is how many nodes got done while requests were counted.
	changed int64
	ready   atomic.Int64
}

// run runs the fleet and counts its requests at the end of the time.
func (f *scaleFleet) run(t *testing.T, whole, during time.Duration) {
	f.requests = map[string]int{}
	ctx, cancel := context.WithTimeout(t.Context(), whole)
	defer cancel()
	client, ds := f.server(t)
	var wait sync.WaitGroup
	for n := range *fleetSize {
		w := newWorld(t)
		w.node.Name = nodeName(n)
		installer := w.installer(f.request)
		installer.Pool, installer.Poll, installer.Recovery = f.pool, time.Second, 45*time.Second
		installer.Cluster = &fleetNode{Cluster: &cluster.Cluster{Client: client, Pool: f.pool, NodeName: nodeName(n)}, w: w}
		var ready bool
		installer.SetReady = func(now bool) error {
			if now != ready {
				f.ready.Add(map[bool]int64{true: 1, false: -1}[now])
			}
			ready = now
			return nil
		}
		wait.Go(func() {
			time.Sleep(time.Duration(n) * 50 * time.Millisecond) // as a DaemonSet's pods are created
			if ctx.Err() == nil {
				_ = installer.Run(ctx)
			}
		})
	}
	wait.Go(func() { // the controller of the DaemonSet
		for ctx.Err() == nil {
			ds := ds.DeepCopy()
			ds.Status.DesiredNumberScheduled, ds.Status.NumberAvailable = int32(*fleetSize), int32(f.ready.Load())
			_ = client.Tracker().Update(appsv1.SchemeGroupVersion.WithResource("daemonsets"), ds, rollout.Namespace)
			client.ClearActions() // they need memory
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
			}
		}
	})
	time.Sleep(whole - during)
	f.count(true)
	before := f.ready.Load()
	time.Sleep(during - time.Second)
	f.count(false)
	f.changed = f.ready.Load() - before
	cancel()
	wait.Wait()
}

func (f *scaleFleet) count(now bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.counting = now
}

func nodeName(n int) string { return fmt.Sprintf("node-%05d", n) }

// server is an API server with the nodes and the DaemonSet of the pool.
func (f *scaleFleet) server(t *testing.T) (*fake.Clientset, *appsv1.DaemonSet) {
	t.Helper()
	ds, err := rollout.DaemonSet(f.pool, f.request)
	require.NoError(t, err)
	if f.paused {
		ds.Annotations = map[string]string{rollout.PausedAnnotation: "true"}
	}
	client := fake.NewClientset(ds)
	client.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: stockVersion}
	for n := range *fleetSize {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), UID: types.UID(nodeName(n)), Labels: map[string]string{"pool": "blue"}}}
		require.NoError(t, client.Tracker().Add(node))
	}
	client.PrependReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		f.mutex.Lock()
		defer f.mutex.Unlock()
		if f.counting {
			f.requests[action.GetVerb()+" "+action.GetResource().Resource]++
		}
		return action.GetResource().Resource == "events", &corev1.Event{}, nil // nobody reads them
	})
	return client, ds
}

// fleetNode asks the API server, and has from the world what a kubelet would have written.
type fleetNode struct {
	*cluster.Cluster
	w *world
}

func (n *fleetNode) Node(ctx context.Context) (*corev1.Node, error) {
	node, err := n.Cluster.Node(ctx)
	if err != nil {
		return nil, err
	}
	world, err := n.w.Node(ctx)
	if err != nil {
		return nil, err
	}
	node.Status = world.Status
	return node, nil
}

func (n *fleetNode) Heartbeat(ctx context.Context) (time.Time, error) {
	_, _ = n.Cluster.Heartbeat(ctx)
	return n.w.Heartbeat(ctx)
}
