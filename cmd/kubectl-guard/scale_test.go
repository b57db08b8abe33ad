package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"kubelet-guard.io/pkg/rollout"
)

var (
	fleetSize = flag.Int("fleet", 50, "nodes of the fleet that TestAFleet asks about, 0: it is skipped. With 1,000 and more the memory of the program counts, too")
	tablePath = flag.String("table", "", "append what TestAFleet has measured with 1,000 nodes and more to the table there")
)

const (
	// nodeSize is about what a Node of a cloud has as JSON: images, labels, managed fields.
	nodeSize = 9 << 10
	// maxMemory of the program, as the kernel counts it.
	maxMemory = 200 << 20
)

// fleet is an API server with nodes of a usual size in one pool. It answers in JSON, which
// costs its clients more than what API servers would answer them with.
type fleet struct {
	*httptest.Server
	nodes []json.RawMessage

	mu       sync.Mutex
	requests map[string]int
	open     map[string]bool
	set      *appsv1.DaemonSet
}

func newFleet(t *testing.T, set *appsv1.DaemonSet) *fleet {
	f := &fleet{requests: map[string]int{}, open: map[string]bool{}, set: set}
	for i := range *fleetSize {
		node := corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%05d", i), ResourceVersion: "7", Labels: map[string]string{"pool": "blue", "kubernetes.io/os": "linux"}, Annotations: map[string]string{}},
			Status: corev1.NodeStatus{
				NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3"},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		report := rollout.Report{RequestID: "old", Phase: rollout.Done, Message: "The node runs what was requested", Time: metav1.Now()}
		node.Annotations[rollout.ReportAnnotation] = report.Annotation()
		for n := 0; n < nodeSize/180; n++ {
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/team-%02d/program@sha256:%064d", n, i)}, SizeBytes: 123456789})
		}
		data, err := json.Marshal(node)
		require.NoError(t, err)
		f.nodes = append(f.nodes, data)
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, body any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body)
	}
	const sets = "/apis/apps/v1/namespaces/" + rollout.Namespace + "/daemonsets"
	one := func() *appsv1.DaemonSet {
		set := f.set.DeepCopy()
		set.TypeMeta = metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"}
		return set
	}
	mux.HandleFunc("GET /api/v1/nodes", f.listNodes)
	mux.HandleFunc("GET /api/v1/nodes/{name}/proxy/guard/pods", http.NotFound)
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(f.nodes[0]) })
	mux.HandleFunc("GET "+sets, func(w http.ResponseWriter, r *http.Request) {
		list := appsv1.DaemonSetList{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSetList"}}
		if f.set != nil {
			list.Items = append(list.Items, *f.set)
		}
		answer(w, list)
	})
	mux.HandleFunc("GET "+sets+"/{name}", func(w http.ResponseWriter, r *http.Request) { answer(w, one()) })
	mux.HandleFunc("POST "+sets, func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		f.set = &appsv1.DaemonSet{}
		_, _, err := scheme.Codecs.UniversalDeserializer().Decode(body.Bytes(), nil, f.set)
		if err != nil {
			t.Error(err)
		}
		answer(w, one())
	})
	mux.HandleFunc("DELETE "+sets+"/{name}", func(w http.ResponseWriter, r *http.Request) {
		f.set = nil
		answer(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess})
	})
	const pods = "/api/v1/namespaces/" + rollout.Namespace + "/pods"
	mux.HandleFunc("GET "+pods, func(w http.ResponseWriter, r *http.Request) { answer(w, f.pods(r)) })
	mux.HandleFunc("PATCH "+pods+"/{name}", func(w http.ResponseWriter, r *http.Request) {
		f.open[r.PathValue("name")] = true
		answer(w, corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}})
	})
	mux.HandleFunc("GET /apis/coordination.k8s.io/v1/namespaces/"+rollout.Namespace+"/leases", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "items": []any{}})
	})
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"apiVersion": "v1", "kind": "PodList", "items": []any{}})
	})
	mux.HandleFunc("GET /apis/policy/v1/poddisruptionbudgets", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"apiVersion": "policy/v1", "kind": "PodDisruptionBudgetList", "items": []any{}})
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		verb, path := r.Method, r.URL.Path
		if strings.Contains(path, "/proxy/") {
			path = "a kubelet"
		} else if verb == http.MethodPatch {
			path = filepath.Dir(path)
		}
		if r.URL.Query().Get("watch") != "" {
			verb = "WATCH"
		}
		f.mu.Lock()
		f.requests[verb+" "+path]++
		if verb == "WATCH" {
			f.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		defer f.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Server.Close)
	return f
}

// page returns where a page starts and ends, and how it goes on.
func page(r *http.Request, n int) (from, to int, next string) {
	from, _ = strconv.Atoi(r.URL.Query().Get("continue"))
	to = n
	if limit, _ := strconv.Atoi(r.URL.Query().Get("limit")); limit > 0 && from+limit < n {
		to, next = from+limit, strconv.Itoa(from+limit)
	}
	return from, to, next
}

func (f *fleet) listNodes(w http.ResponseWriter, r *http.Request) {
	from, to, next := page(r, len(f.nodes))
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"apiVersion":"v1","kind":"NodeList","metadata":{"resourceVersion":"7","continue":%q},"items":[`, next)
	_, _ = w.Write(bytes.Join(rawMessages(f.nodes[from:to]), []byte(",")))
	_, _ = w.Write([]byte("]}"))
}

func rawMessages(list []json.RawMessage) [][]byte {
	out := make([][]byte, len(list))
	for i := range list {
		out[i] = list[i]
	}
	return out
}

// pods are the installers of the pool, each of a usual size.
func (f *fleet) pods(r *http.Request) *corev1.PodList {
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	if f.set == nil {
		return list
	}
	from, to, next := page(r, *fleetSize)
	list.Continue = next
	for i := from; i < to; i++ {
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("installer-%05d", i)}, Spec: *f.set.Spec.Template.Spec.DeepCopy()}
		name := fmt.Sprintf("node-%05d", i)
		// As the DaemonSet controller does it.
		pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields = []corev1.NodeSelectorRequirement{
			{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{name}},
		}
		if f.open[pod.Name] {
			pod.Spec.NodeName, pod.Spec.SchedulingGates = name, nil
		}
		if r.URL.Query().Get("fieldSelector") == "" || pod.Spec.NodeName == "" {
			list.Items = append(list.Items, pod)
		}
	}
	return list
}

// used is what a run of the program needed.
type used struct {
	// memory in bytes, as the kernel counts it.
	memory  int64
	seconds float64
}

// run runs the program as a process of its own.
func (f *fleet) run(t *testing.T, arguments ...string) (output string, u used) {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q}}]
contexts: [{name: test, context: {cluster: test}}]
current-context: test
`, f.URL), 0o600))
	command := exec.Command(os.Args[0], arguments...)
	command.Env = append(os.Environ(), "RUN_MAIN=yes", "KUBECONFIG="+kubeconfig)
	start := time.Now()
	out, _ := command.CombinedOutput()
	u = used{command.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10, time.Since(start).Seconds()}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.Logf("%s: %d MiB, %.1f s, %d lines of output, requests %v", strings.Join(arguments, " "), u.memory>>20, u.seconds, strings.Count(string(out), "\n"), f.requests)
	return string(out), u
}

func TestAFleet(t *testing.T) {
	nodes := *fleetSize
	if nodes == 0 {
		t.Skip("-fleet=0")
	}
	large := nodes >= 1000
	timeout := "1s" // nothing of the pool moves, so the program waits for that long
	if large {
		timeout = "10s"
	}
	pool := rollout.Pool{Name: "blue", Selector: "pool=blue", MaxUnavailable: 50}
	set, err := rollout.DaemonSet(pool, rollout.Request{Target: rollout.Audit, Image: "x"})
	require.NoError(t, err)
	const lists, watches, daemonSets = "GET /api/v1/nodes", "WATCH /api/v1/nodes", "GET /apis/apps/v1/namespaces/" + rollout.Namespace + "/daemonsets"
	const screen = 60
	pages := (nodes + 499) / 500
	rows := map[string]string{}
	for name, test := range map[string]struct {
		set       *appsv1.DaemonSet
		arguments []string
		lines     int
		requests  map[string]int
		says      string
	}{
		"status":   {set, []string{"rollout", "status"}, screen, map[string]int{lists: pages, daemonSets: 1}, fmt.Sprintf("%d: node-00000, ", nodes)},
		"wait":     {set, []string{"rollout", "status", "--wait", "--timeout=" + timeout}, screen, map[string]int{lists: 2 * pages, watches: 1, daemonSets: 8}, "not all pools are Complete after " + timeout},
		"kubelets": {nil, []string{"status"}, nodes + 10, map[string]int{lists: pages, "GET a kubelet": nodes}, "Unguarded"},
		"start": {nil, []string{"rollout", "start", "--pool=blue=pool=blue", "--mode=Audit", "--image=x", "--yes", "--timeout=" + timeout}, screen,
			map[string]int{lists: 2 * pages, watches: 1, "GET a kubelet": nodes, "PATCH /api/v1/namespaces/" + rollout.Namespace + "/pods": 100, daemonSets + "/guard-installer-blue": 8, "PATCH /api/v1/nodes": nodes},
			fmt.Sprintf("%d nodes: Pending: node-00000, ", nodes)},
	} {
		t.Run(name, func(t *testing.T) {
			if !large { // what a run measures is its own
				t.Parallel()
			}
			f := newFleet(t, test.set)
			out, used := f.run(t, test.arguments...)
			require.Contains(t, out, test.says)
			if large {
				require.Less(t, used.memory, int64(maxMemory))
			}
			require.LessOrEqual(t, strings.Count(out, "\n"), test.lines)
			all := 0
			for _, n := range f.requests {
				all += n
			}
			for request, most := range test.requests {
				require.LessOrEqual(t, f.requests[request], most, request)
			}
			if !large {
				return
			}
			rows[name] = fmt.Sprintf("| `kubectl guard %s` | %d | %.1f s | %d MiB |\n", strings.Join(test.arguments, " "), all, used.seconds, used.memory>>20)
		})
	}
	if *tablePath == "" || !large {
		return
	}
	table := fmt.Sprintf("\n| %d nodes | requests | time | memory, at most |\n|---|---|---|---|\n", nodes)
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		table += rows[name]
	}
	file, err := os.OpenFile(*tablePath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	_, err = file.WriteString(table)
	require.NoError(t, err)
	require.NoError(t, file.Close())
}
