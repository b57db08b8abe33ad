package webhookscale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
)

var (
	webhookFlag   = flag.String("webhook", "", "the program guard-webhook; empty skips the measurement")
	manifestsFlag = flag.String("manifests", filepath.Join("..", "..", "manifests"), "folder with the manifests")
	podsFlag      = flag.Int("pods", 150_000, "protected pods")
	nodesFlag     = flag.Int("nodes", 5000, "nodes")
	budgetsFlag   = flag.Int("budgets", 10_000, "PodDisruptionBudgets")
	loadFlag      = flag.Duration("load", 10*time.Second, "how long each number of clients sends reviews")
	rateFlag      = flag.Float64("rate", 250, "reviews a second of 500 clients together")
	tableFlag     = flag.String("table", "", "file that receives the table")
	strictFlag    = flag.Bool("strict", false, "fail when a time is above its limit; a busy machine is slower")
)

// Limits of a replica.
const (
	memoryLimit   = 150 // MiB
	nodeCPULimit  = 2 * time.Millisecond
	reviewP99     = 50 * time.Millisecond
	startTimeout  = 5 * time.Minute
	relistTimeout = 5 * time.Minute
	// settle is for what a replica does with what it has received.
	settle = 5 * time.Second
)

// TestScale is the measurement of make bench-webhook.
func TestScale(t *testing.T) {
	if *webhookFlag == "" {
		t.Skip("it measures a program: run it with -webhook=FILE (see make bench-webhook)")
	}
	s := size{pods: *podsFlag, nodes: *nodesFlag, budgets: *budgetsFlag, namespaces: 2000, deletions: 900}
	var table strings.Builder
	row := func(format string, arguments ...any) {
		line := fmt.Sprintf(format, arguments...)
		fmt.Fprintln(&table, line)
		t.Log(line)
	}
	row("| one replica, %d protected pods, %d nodes, %d budgets | measured | limit |", s.pods, s.nodes, s.budgets)
	row("|---|---|---|")
	for _, streams := range []bool{true, false} {
		t.Run(fmt.Sprintf("streams=%t", streams), func(t *testing.T) {
			lists := map[bool]string{true: "streamed lists", false: "lists in pages"}[streams]
			srv := newServer(t, s, streams)
			ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
			defer cancel()
			started := time.Now()
			r := startReplica(ctx, t, *webhookFlag, *manifestsFlag, srv)
			awaitPods(ctx, t, r, s)
			row("| start until all is known, %s | %.0f s | |", lists, time.Since(started).Seconds())
			time.Sleep(settle)
			m := r.memory(t)
			row("| memory after the start, %s | %.0f MiB, at most %.0f MiB; %.0f MiB alive | %d MiB |", lists, m.resident, m.peak, m.live, memoryLimit)
			if m.peak > memoryLimit {
				t.Errorf("%.0f MiB at the start are more than %d MiB", m.peak, memoryLimit)
			}

			r.resetPeak(t)
			relist(t, srv)
			again := r.memory(t)
			row("| memory during a relist of everything, %s | at most %.0f MiB; %.0f MiB alive | %d MiB |", lists, again.peak, again.live, memoryLimit)
			awaitPods(ctx, t, r, s)
			if again.peak > memoryLimit {
				t.Errorf("%.0f MiB during a relist are more than %d MiB", again.peak, memoryLimit)
			}
			if !streams {
				return
			}

			r.measureNodes(t, srv, s, row)
			var bodies [][]byte
			for i := range 1000 {
				bodies = append(bodies, review(t, "Pod", "pods", s.pod(i), "jane", true))
			}
			for _, load := range []struct {
				clients int
				rate    float64
			}{{1, 0}, {16, 0}, {500, 0}, {500, *rateFlag}} {
				l := r.load(t, load.clients, load.rate, bodies, *loadFlag)
				how, limit := "each as fast as it is answered", ""
				if load.rate > 0 {
					how, limit = fmt.Sprintf("%.0f/s together", load.rate), fmt.Sprintf("p99 %d ms", reviewP99.Milliseconds())
				}
				row("| reviews of pod deletions, %d clients, %s | %.0f/s, p50 %.1f ms, p99 %.1f ms | %s |", l.clients, how, l.perSecond, milliseconds(l.p50), milliseconds(l.p99), limit)
				if *strictFlag && load.rate > 0 && l.p99 > reviewP99 {
					t.Errorf("the 99th percentile of 500 clients is %s, above %s", l.p99, reviewP99)
				}
			}
			m = r.memory(t)
			row("| memory under load, with 500 connections | %.0f MiB, at most %.0f MiB | |", m.resident, m.peak)
		})
	}
	if *tableFlag != "" {
		require.NoError(t, os.MkdirAll(filepath.Dir(*tableFlag), 0o755))
		require.NoError(t, os.WriteFile(*tableFlag, []byte(table.String()), 0o644))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// awaitPods waits until the replica counts all pods, each with a budget.
func awaitPods(ctx context.Context, t *testing.T, r *replica, s size) {
	t.Helper()
	for {
		metrics := r.readMetrics(t)
		pods, without := metrics.Sum(fleetmetrics.ProtectedPodsMetric), metrics.Sum(fleetmetrics.WithoutBudgetMetric)
		_, known := metrics[fleetmetrics.WithoutBudgetMetric]
		if int(pods) == s.pods && known && without == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the replica knows %.0f pods of %d in time, %.0f of them without a budget (%t)", pods, s.pods, without, known)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// relist ends all watches and waits until everything has been sent again.
func relist(t *testing.T, srv *server) {
	t.Helper()
	before := srv.lists()
	srv.breakWatches()
	require.Eventually(t, func() bool {
		now := srv.lists()
		for resource, lists := range before {
			if now[resource] <= lists {
				return false
			}
		}
		return true
	}, relistTimeout, 100*time.Millisecond, "the replica does not list everything again")
	time.Sleep(settle)
}

// measureNodes has nodes deleted under a policy with a long ledger.
func (r *replica) measureNodes(t *testing.T, srv *server, s size, row func(string, ...any)) {
	t.Helper()
	client := r.client()
	defer client.CloseIdleConnections()
	cost := func(name string, times int, dryRun bool) {
		written := srv.currentPolicy().Status.Deletions
		bodies := make([][]byte, times)
		for i := range bodies {
			bodies[i] = review(t, "Node", "nodes", s.node(len(written)-s.deletions+i), "jane", dryRun)
		}
		before := r.cpu(t)
		for i, body := range bodies {
			allowed, err := r.review(t.Context(), client, "/validate/node-deletion", body)
			require.NoError(t, err)
			require.True(t, allowed, "deletion %d", i)
		}
		if !dryRun {
			require.Len(t, srv.currentPolicy().Status.Deletions, len(written)+times)
		}
		each := (r.cpu(t) - before) / time.Duration(times)
		limit := ""
		if dryRun {
			limit = fmt.Sprintf("%.0f ms", milliseconds(nodeCPULimit))
		}
		row("| %s | %.1f ms of CPU | %s |", name, milliseconds(each), limit)
		if *strictFlag && dryRun && each > nodeCPULimit {
			t.Errorf("%s costs %s, more than %s", name, each, nodeCPULimit)
		}
	}
	cost(fmt.Sprintf("node deletion that is judged, %d in the ledger", s.deletions), 500, true)
	cost(fmt.Sprintf("node deletion that is judged and written, %d to 1,000 in the ledger", s.deletions), 1000-s.deletions, false)
}
