package app

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// NodeTimeout is what a silent node costs, and more than an answer of this
// process takes on a busy machine.
const nodeTimeout = "1s"

// Now is when everything in these tests happens.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// cluster is an API server with just what the plugin requests, nodes included.
type cluster struct {
	t      *testing.T
	server *httptest.Server
	// Now is the clock of the command; the time of these tests when nil.
	now func() time.Time

	mu     sync.Mutex
	nodes  []*fakeNode
	pods   map[string]*corev1.Pod
	events []corev1.Event
	// budgets may be listed unless noBudgets.
	budgets   []policyv1.PodDisruptionBudget
	noBudgets bool
	// owners are objects of apps/v1, by resource/name.
	owners map[string]map[string]any
	// records by name; nil: the cluster does not know the kind.
	records map[string]json.RawMessage
	// writes are the requests that change something: verb, path and body.
	writes []string
	// watchers get each change of a node.
	watchers []chan watch.Event
	// sent is what they know, by name.
	sent map[string]*corev1.Node
	// lists counts the pages of nodes that were read, watches the watches.
	lists, watches int
	// rollouts is what roll-outs are made of.
	rollouts rollouts
}

// fakeNode is a node with its kubelet.
type fakeNode struct {
	name, version string
	// status is what the proxy answers with; 200 with the list when zero.
	status int
	// silent: the kubelet never answers.
	silent bool
	mode   guard.Mode
	pods   []guard.PodState
	// waiting are pods whose start waits for a held one.
	waiting []guard.WaitingState
	// History is called before each answer, with the cluster's lock held.
	asked func(*fakeNode)

	labels, annotations map[string]string
	notReady            bool
	// holding: its condition says that pods are held.
	holding bool
}

func newCluster(t *testing.T, nodes ...*fakeNode) *cluster {
	c := &cluster{
		t: t, nodes: nodes,
		pods: map[string]*corev1.Pod{}, owners: map[string]map[string]any{}, records: map[string]json.RawMessage{},
	}
	mux := http.NewServeMux()
	handle := func(pattern string, answer func(w http.ResponseWriter, r *http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			defer c.mu.Unlock()
			body := answer(w, r)
			c.notify()
			if body != nil {
				w.Header().Set("Content-Type", "application/json")
				if status, ok := body.(*metav1.Status); ok {
					w.WriteHeader(int(status.Code))
				}
				if err := json.NewEncoder(w).Encode(body); err != nil {
					t.Errorf("%s: %v", pattern, err)
				}
			}
		})
	}
	handle("GET /api", func(http.ResponseWriter, *http.Request) any {
		return &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	})
	handle("GET /apis", func(http.ResponseWriter, *http.Request) any {
		version := metav1.GroupVersionForDiscovery{GroupVersion: "apps/v1", Version: "v1"}
		return &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{
			{Name: "apps", Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version},
		}}
	})
	handle("GET /api/v1", func(http.ResponseWriter, *http.Request) any {
		return resources("v1", metav1.APIResource{Name: "pods", SingularName: "pod", Kind: "Pod", Namespaced: true, ShortNames: []string{"po"}},
			metav1.APIResource{Name: "nodes", SingularName: "node", Kind: "Node"})
	})
	handle("GET /apis/apps/v1", func(http.ResponseWriter, *http.Request) any {
		return resources("apps/v1", metav1.APIResource{Name: "deployments", SingularName: "deployment", Kind: "Deployment", Namespaced: true, ShortNames: []string{"deploy"}},
			metav1.APIResource{Name: "replicasets", SingularName: "replicaset", Kind: "ReplicaSet", Namespaced: true},
			metav1.APIResource{Name: "statefulsets", SingularName: "statefulset", Kind: "StatefulSet", Namespaced: true})
	})
	handle("GET /api/v1/nodes", func(_ http.ResponseWriter, r *http.Request) any {
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			t.Error(err)
		}
		c.lists++
		list := &corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
		for _, n := range c.nodes {
			if selector.Matches(labels.Set(n.labels)) {
				list.Items = append(list.Items, *n.object())
			}
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
		list.Items = list.Items[from:]
		if limit, _ := strconv.Atoi(r.URL.Query().Get("limit")); limit > 0 && len(list.Items) > limit {
			list.Items, list.Continue = list.Items[:limit], strconv.Itoa(from+limit)
		}
		if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") {
			partial := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: "meta.k8s.io/v1"}, ListMeta: list.ListMeta}
			for i := range list.Items {
				partial.Items = append(partial.Items, metav1.PartialObjectMetadata{ObjectMeta: list.Items[i].ObjectMeta})
			}
			return partial
		}
		return list
	})
	handle("GET /api/v1/nodes/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		if n := c.node(r.PathValue("name")); n != nil {
			return n.object()
		}
		return notFound("nodes", r.PathValue("name"))
	})
	mux.HandleFunc("GET /api/v1/nodes/{name}/proxy/guard/pods", c.proxy)
	listPods := func(_ http.ResponseWriter, r *http.Request) any {
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			t.Error(err)
		}
		list := &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		namespace := r.PathValue("namespace")
		for _, name := range sortedKeys(c.pods) {
			if pod := c.pods[name]; (namespace == "" || pod.Namespace == namespace) && selector.Matches(labels.Set(pod.Labels)) {
				list.Items = append(list.Items, *pod)
			}
		}
		return list
	}
	handle("GET /api/v1/pods", listPods)
	handle("GET /api/v1/namespaces/{namespace}/pods", listPods)
	handle("GET /apis/policy/v1/poddisruptionbudgets", func(http.ResponseWriter, *http.Request) any {
		if c.noBudgets {
			return failure(http.StatusForbidden, metav1.StatusReasonForbidden, "poddisruptionbudgets.policy is forbidden")
		}
		return &policyv1.PodDisruptionBudgetList{TypeMeta: metav1.TypeMeta{Kind: "PodDisruptionBudgetList", APIVersion: "policy/v1"}, Items: c.budgets}
	})
	handle("GET /api/v1/namespaces/{namespace}/pods/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		if r.PathValue("namespace") == "closed" {
			return failure(http.StatusForbidden, metav1.StatusReasonForbidden, "pods is forbidden")
		}
		if pod := c.pods[r.PathValue("namespace")+"/"+r.PathValue("name")]; pod != nil {
			return pod
		}
		return notFound("pods", r.PathValue("name"))
	})
	handle("PATCH /api/v1/namespaces/{namespace}/pods/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		c.note(r)
		return c.pods[r.PathValue("namespace")+"/"+r.PathValue("name")]
	})
	handle("GET /api/v1/namespaces/{namespace}/events", func(_ http.ResponseWriter, r *http.Request) any {
		return &corev1.EventList{TypeMeta: metav1.TypeMeta{Kind: "EventList", APIVersion: "v1"}, Items: c.events}
	})
	handle("GET /apis/apps/v1/namespaces/{namespace}/{resource}/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		if owner := c.owners[r.PathValue("resource")+"/"+r.PathValue("name")]; owner != nil {
			return owner
		}
		return notFound(r.PathValue("resource"), r.PathValue("name"))
	})
	handle("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", func(http.ResponseWriter, *http.Request) any {
		return map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "status": map[string]any{"userInfo": map[string]any{"username": "ada"}}}
	})
	handle("GET /api/v1/namespaces/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		return &corev1.Namespace{TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: r.PathValue("name")}}
	})
	const recordsPath = "/apis/kubelet-guard.io/v1alpha1/poddeletions"
	handle("GET "+recordsPath+"/{name}", func(w http.ResponseWriter, r *http.Request) any {
		if c.records == nil {
			http.NotFound(w, r)
			return nil
		}
		if record, found := c.records[r.PathValue("name")]; found {
			return record
		}
		return notFound("poddeletions.kubelet-guard.io", r.PathValue("name"))
	})
	handle("POST "+recordsPath, func(w http.ResponseWriter, r *http.Request) any {
		if c.records == nil {
			http.NotFound(w, r)
			return nil
		}
		body := c.note(r)
		var record metav1.PartialObjectMetadata
		if err := json.Unmarshal(body, &record); err != nil {
			t.Error(err)
		}
		if _, exists := c.records[record.Name]; exists {
			return failure(http.StatusConflict, metav1.StatusReasonAlreadyExists, "already exists")
		}
		if r.URL.Query().Get("dryRun") == "" {
			c.records[record.Name] = body
		}
		return json.RawMessage(body)
	})
	c.serveRollouts(handle)
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/nodes" && r.URL.Query().Get("watch") != "" {
			c.watch(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		c.server.CloseClientConnections()
		c.server.Close()
	})
	return c
}

// watch streams the changes of nodes, of all of them since the list.
func (c *cluster) watch(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		c.t.Error(err)
	}
	events := make(chan watch.Event, 10000)
	c.mu.Lock()
	c.watches++
	// What was changed since the list comes with the first events.
	for _, n := range c.nodes {
		events <- watch.Event{Type: watch.Modified, Object: n.object().DeepCopy()}
	}
	c.notify()
	c.watchers = append(c.watchers, events)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		w.(http.Flusher).Flush()
		select {
		case event := <-events:
			if !selector.Matches(labels.Set(event.Object.(*corev1.Node).Labels)) {
				continue
			}
			if err := json.NewEncoder(w).Encode(map[string]any{"type": event.Type, "object": event.Object}); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// notify sends the watchers which nodes are others than before.
func (c *cluster) notify() {
	if c.sent == nil {
		c.sent = map[string]*corev1.Node{}
	}
	for _, n := range c.nodes {
		node := n.object()
		if was := c.sent[n.name]; was != nil && equality.Semantic.DeepEqual(was, node) {
			continue
		}
		c.sent[n.name] = node.DeepCopy()
		for _, events := range c.watchers {
			events <- watch.Event{Type: watch.Modified, Object: node.DeepCopy()}
		}
	}
}

func (c *cluster) node(name string) *fakeNode {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (n *fakeNode) object() *corev1.Node {
	ready := corev1.ConditionTrue
	if n.notReady {
		ready = corev1.ConditionFalse
	}
	node := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: n.labels, Annotations: n.annotations},
		Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: n.version},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
		},
	}
	if n.holding {
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: guard.NodeHoldingPods, Status: corev1.ConditionTrue})
	}
	return node
}

// proxy answers for a kubelet as the API server hands it on.
func (c *cluster) proxy(w http.ResponseWriter, r *http.Request) {
	n := c.node(r.PathValue("name"))
	if n == nil || n.silent {
		<-r.Context().Done()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.asked != nil {
		n.asked(n)
	}
	switch n.status {
	case 0:
		list := guard.PodList{Version: n.version, Mode: n.mode, Items: n.pods, Waiting: n.waiting}
		if list.Mode == "" {
			list.Mode = guard.Enforce
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(list); err != nil {
			c.t.Error(err)
		}
	case http.StatusNotFound:
		http.NotFound(w, r)
	case http.StatusForbidden:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(n.status)
		_ = json.NewEncoder(w).Encode(failure(n.status, metav1.StatusReasonForbidden, `nodes "`+n.name+`" is forbidden: User "ada" cannot get resource "nodes/proxy"`))
	default:
		http.Error(w, "error trying to reach service: dial tcp: connection refused", n.status)
	}
}

// note keeps a request that changes something, and returns its body.
func (c *cluster) note(r *http.Request) []byte {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		c.t.Error(err)
	}
	path := r.URL.Path
	if dry := r.URL.Query().Get("dryRun"); dry != "" {
		path += "?dryRun=" + dry
	}
	c.writes = append(c.writes, r.Method+" "+path+" "+strings.TrimSpace(body.String()))
	return body.Bytes()
}

func resources(version string, list ...metav1.APIResource) *metav1.APIResourceList {
	for i := range list {
		list[i].Verbs = metav1.Verbs{"get", "list", "patch"}
	}
	return &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version, APIResources: list}
}

func failure(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}
}

func notFound(kind, name string) *metav1.Status {
	status := failure(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", kind, name))
	status.Details = &metav1.StatusDetails{Name: name, Kind: kind}
	return status
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// result is what a run of the command printed.
type result struct {
	out, errOut string
	err         error
}

// run runs the command with answers on stdin.
func (c *cluster) run(stdin string, arguments ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return c.runUntil(ctx, strings.NewReader(stdin), arguments...)
}

// mustRun runs the command, which must succeed.
func (c *cluster) mustRun(stdin string, arguments ...string) result {
	c.t.Helper()
	r := c.run(stdin, arguments...)
	require.NoError(c.t, r.err, r.errOut)
	return r
}

// runUntil runs the command until the context is done.
func (c *cluster) runUntil(ctx context.Context, stdin io.Reader, arguments ...string) result {
	c.t.Helper()
	folder := c.t.TempDir()
	kubeconfig := filepath.Join(folder, "kubeconfig")
	require.NoError(c.t, os.WriteFile(kubeconfig, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q}}]
contexts: [{name: test, context: {cluster: test, namespace: web}}]
current-context: test
`, c.server.URL), 0o600))
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	streams.In = stdin
	at := c.now
	if at == nil {
		at = func() time.Time { return now }
	}
	command := newCommand(factory.New(streams, at, time.Millisecond))
	// After the verb, which __complete wants first.
	verb := 1
	if arguments[0] == cobra.ShellCompRequestCmd {
		verb = 2
	}
	if arguments[verb-1] == "rollout" {
		verb++
	}
	command.SetArgs(slices.Insert(slices.Clone(arguments), verb, "--kubeconfig", kubeconfig, "--cache-dir", filepath.Join(folder, "cache"), "--node-timeout", nodeTimeout))
	err := command.ExecuteContext(ctx)
	return result{out: out.String(), errOut: errOut.String(), err: err}
}

// golden compares text with a file in testdata. Lines of tables and of running
// text are at most 100 columns wide, unless wide is true.
func golden(t *testing.T, name, text string, wide bool) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run go test with -update to make it")
	require.Equal(t, string(want), text, "%s; run go test with -update if this is right", path)
	for _, line := range strings.Split(text, "\n") {
		// Commands to copy are kept in one piece.
		if !wide && !strings.HasPrefix(line, "    -p '") {
			require.LessOrEqual(t, len(line), 100, "line too wide for a terminal: %s", line)
		}
	}
}

// uidOf makes up the UID of a pod: n in every group.
func uidOf(n int) types.UID {
	return types.UID(fmt.Sprintf("%08d-0000-4000-8000-%012d", n, n))
}

// heldPod is a pod that a kubelet holds for the causes, the first for the longest.
func heldPod(namespace, name string, n int, present bool, causes ...guard.Cause) guard.PodState {
	pod := guard.PodState{Namespace: namespace, Name: name, UID: uidOf(n), State: guard.Held, ObjectPresent: present}
	for i, cause := range causes {
		pod.Holds = append(pod.Holds, guard.HoldState{
			Cause: cause, Since: now.Add(-time.Duration(10-i) * time.Minute), LastAttempt: now.Add(-30 * time.Second), Message: "written by the test",
		})
	}
	return pod
}

// protectedPod is a pod that nothing tries to stop.
func protectedPod(namespace, name string, n int) guard.PodState {
	return guard.PodState{Namespace: namespace, Name: name, UID: uidOf(n), State: guard.Protected, ObjectPresent: true}
}

// addPod puts an object into the API.
func (c *cluster) addPod(namespace, name string, n int, node string, change ...func(*corev1.Pod)) {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: uidOf(n), Labels: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, f := range change {
		f(pod)
	}
	c.pods[namespace+"/"+name] = pod
}

func labelled(key, value string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Labels[key] = value }
}

func ownedBy(kind, name string, uid types.UID) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		controller := true
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, UID: uid, Controller: &controller}}
	}
}

const guarded = "v1.36.3+guard.0.2.0"

// everyState is a cluster with a node in each state and a pod of each kind.
func everyState(t *testing.T) *cluster {
	c := newCluster(t,
		&fakeNode{name: "worker-1", version: guarded, pods: []guard.PodState{
			protectedPod("web", "front-1", 1),
			heldPod("web", "cache", 2, false, guard.PodVanished),
			heldPod("web", "db-0", 3, false, guard.PodVanished),
			heldPod("jobs", "import", 4, true, guard.Evicted, guard.SandboxChanged),
			{Namespace: "web", Name: "old", UID: uidOf(5), State: guard.Terminating},
		}},
		&fakeNode{name: "worker-2", version: guarded, mode: guard.Audit},
		&fakeNode{name: "worker-3", version: "v1.36.3", status: http.StatusNotFound},
		&fakeNode{name: "worker-4", version: guarded, status: http.StatusGatewayTimeout},
		&fakeNode{name: "worker-5", version: guarded, status: http.StatusForbidden},
		&fakeNode{name: "worker-6", version: guarded, status: http.StatusServiceUnavailable},
	)
	c.addPod("web", "front-1", 1, "worker-1", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	c.addPod("web", "db-0", 33, "worker-2", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	c.addPod("jobs", "import", 4, "worker-1", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	return c
}
