package app

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"kubelet-guard.io/cmd/kubectl-guard/internal/image"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// unreadable makes a pool look like one of a later release.
func unreadable(c *cluster, pool string) {
	c.rollouts.sets[rollout.DaemonSetName(pool)].Spec.Template.Annotations[rollout.RequestAnnotation] = `{"target":"Audit","image":"x","newField":1}`
}

const (
	installerImage = "registry.example/kubelet-guard/installer:0.2.0"
	stock          = "v1.36.3"
	// digest of every image.
	digest = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
	// installerDigest is how installerImage is named once nodes were inspected.
	installerDigest = "registry.example/kubelet-guard/installer@" + digest
)

// rollouts are the DaemonSets of pools, with the DaemonSet controller and the
// installers: each look of the command at a DaemonSet lets them take a step.
type rollouts struct {
	sets map[string]*appsv1.DaemonSet
	// leases are the slots: name@holder.
	leases []string
	// installed is what the kubelets of images are: version by image.
	installed map[string]string
	// outcome of a change of a node; Done when it is not there.
	outcome map[string]rollout.Phase
	// refused nodes report so when they are inspected.
	refused map[string]string
	// pulling nodes have an installer that does not start.
	pulling map[string]bool
	// checksums of the kubelets that nodes are offered, where they differ.
	checksums map[string]string
	// lying nodes report what was requested and run a kubelet of this version, without guard.
	lying map[string]string
	// digests of images as nodes report them, where they differ; empty: none.
	digests map[string]string
	// open are the pods whose gate was removed; pulls is how many nodes pulled at most at the
	// same time.
	open  map[string]bool
	pulls int
	// started has the nodes in the order in which they were changed.
	started []string
	// reports counts them, for their times.
	reports int
	// stepped is called before each step, with the cluster's lock held.
	stepped func(*appsv1.DaemonSet)
}

// serveRollouts registers what roll-outs need.
func (c *cluster) serveRollouts(handle func(string, func(http.ResponseWriter, *http.Request) any)) {
	c.rollouts = rollouts{
		sets: map[string]*appsv1.DaemonSet{}, installed: map[string]string{installerImage: guarded},
		outcome: map[string]rollout.Phase{}, refused: map[string]string{}, pulling: map[string]bool{},
		checksums: map[string]string{}, lying: map[string]string{}, digests: map[string]string{}, open: map[string]bool{},
	}
	const path = "/apis/apps/v1/namespaces/" + rollout.Namespace + "/daemonsets"
	decode := func(body []byte) *appsv1.DaemonSet {
		set := &appsv1.DaemonSet{}
		// Not always JSON: clients send objects of these kinds as protobuf.
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, set); err != nil {
			c.t.Error(err)
		}
		return set
	}
	handle("GET "+path, func(http.ResponseWriter, *http.Request) any {
		list := &appsv1.DaemonSetList{TypeMeta: metav1.TypeMeta{Kind: "DaemonSetList", APIVersion: "apps/v1"}}
		for _, name := range sortedKeys(c.rollouts.sets) {
			list.Items = append(list.Items, *c.rollouts.sets[name])
		}
		return list
	})
	handle("GET "+path+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		set := c.rollouts.sets[r.PathValue("name")]
		if set == nil {
			return notFound("daemonsets.apps", r.PathValue("name"))
		}
		if c.rollouts.stepped != nil {
			c.rollouts.stepped(set)
		}
		c.step(set)
		return set
	})
	handle("POST "+path, func(_ http.ResponseWriter, r *http.Request) any {
		set := decode(c.note(r))
		if r.URL.Query().Get("dryRun") == "" {
			set.Generation = 1
			c.rollouts.sets[set.Name] = set
		}
		return set
	})
	handle("PUT "+path+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		set := decode(c.note(r))
		if r.URL.Query().Get("dryRun") == "" {
			set.Generation++
			c.rollouts.sets[set.Name] = set
			for name := range c.rollouts.open {
				if strings.HasPrefix(name, set.Name+"-") {
					delete(c.rollouts.open, name)
				}
			}
		}
		return set
	})
	handle("PATCH "+path+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		body := c.note(r)
		set := c.rollouts.sets[r.PathValue("name")]
		if set == nil {
			return notFound("daemonsets.apps", r.PathValue("name"))
		}
		// Of a merge patch, what the command needs: a null removes.
		if err := json.Unmarshal(body, set); err != nil {
			c.t.Error(err)
		}
		set.Generation++
		return set
	})
	handle("DELETE "+path+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		c.note(r)
		delete(c.rollouts.sets, r.PathValue("name"))
		return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: http.StatusOK}
	})
	const pods = "/api/v1/namespaces/" + rollout.Namespace + "/pods"
	handle("GET "+pods, func(_ http.ResponseWriter, r *http.Request) any {
		list := &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		pool := strings.TrimPrefix(r.URL.Query().Get("labelSelector"), rollout.PoolLabel+"=")
		set := c.rollouts.sets[rollout.DaemonSetName(pool)]
		if set == nil {
			return list
		}
		waiting := r.URL.Query().Get("fieldSelector") == "spec.nodeName="
		for _, n := range c.poolNodes(set) {
			if pod := c.installer(set, n); !waiting || pod.Spec.NodeName == "" {
				list.Items = append(list.Items, *pod)
			}
		}
		return list
	})
	handle("PATCH "+pods+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		assert.JSONEq(c.t, `{"spec":{"schedulingGates":null}}`, body.String())
		c.rollouts.open[r.PathValue("name")] = true
		return &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}}
	})
	const leases = "/apis/coordination.k8s.io/v1/namespaces/" + rollout.Namespace + "/leases"
	handle("GET "+leases, func(http.ResponseWriter, *http.Request) any {
		list := &coordinationv1.LeaseList{TypeMeta: metav1.TypeMeta{Kind: "LeaseList", APIVersion: "coordination.k8s.io/v1"}}
		for _, name := range c.rollouts.leases {
			name, holder, _ := strings.Cut(name, "@")
			list.Items = append(list.Items, coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder},
			})
		}
		return list
	})
	handle("DELETE "+leases+"/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		c.note(r)
		c.rollouts.leases = nil
		return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: http.StatusOK}
	})
	handle("PATCH /api/v1/nodes/{name}/status", func(_ http.ResponseWriter, r *http.Request) any {
		n := c.node(r.PathValue("name"))
		if assert.JSONEq(c.t, `{"status":{"conditions":[{"type":"kubelet-guard.io/HoldingPods","$patch":"delete"}]}}`, string(c.note(r))) {
			n.holding = false
		}
		return n.object()
	})
	handle("PATCH /api/v1/nodes/{name}", func(_ http.ResponseWriter, r *http.Request) any {
		var patch struct {
			Metadata struct{ Labels, Annotations map[string]*string }
		}
		if err := json.Unmarshal(c.note(r), &patch); err != nil {
			c.t.Error(err)
		}
		n := c.node(r.PathValue("name"))
		for key := range patch.Metadata.Labels {
			delete(n.labels, key)
		}
		for key, value := range patch.Metadata.Annotations {
			if delete(n.annotations, key); value != nil {
				n.annotations[key] = *value
			}
		}
		return n.object()
	})
}

// installer is the pod of a DaemonSet on a node.
func (c *cluster) installer(set *appsv1.DaemonSet, n *fakeNode) *corev1.Pod {
	template := set.Spec.Template.Spec
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + n.name}}
	if len(template.SchedulingGates) > 0 && !c.rollouts.open[pod.Name] {
		pod.Spec.SchedulingGates = template.SchedulingGates
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{n.name}}}},
		}}}}
		return pod
	}
	pod.Spec.NodeName = n.name
	name := template.Containers[0].Image
	status := corev1.ContainerStatus{Name: rollout.Container, Image: name, ImageID: image.Repository(name) + "@" + digest}
	if other, given := c.rollouts.digests[n.name]; given {
		status.ImageID = other
	}
	if c.rollouts.pulling[n.name] {
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	return pod
}

// versionOf is the version of the kubelet in the image of a request.
func (c *cluster) versionOf(request rollout.Request) string {
	return c.rollouts.installed[cmp.Or(request.ImageName, request.Image)]
}

// poolNodes returns the nodes on which a DaemonSet has pods.
func (c *cluster) poolNodes(set *appsv1.DaemonSet) []*fakeNode {
	pool, err := rollout.PoolOf(set)
	if err != nil {
		c.t.Error(err)
	}
	var matching []*fakeNode
	for _, n := range c.nodes {
		if pool.Matches(n.object()) {
			matching = append(matching, n)
		}
	}
	return matching
}

// step lets the installers of a DaemonSet take one step: all inspect at the same time, and
// one at a time is changed, until one has failed.
func (c *cluster) step(set *appsv1.DaemonSet) {
	request, err := rollout.RequestOf(set)
	if err != nil {
		c.t.Error(err)
		return
	}
	list := c.poolNodes(set)
	set.Status = appsv1.DaemonSetStatus{ObservedGeneration: set.Generation}
	changed := false
	pulls := 0
	defer func() { c.rollouts.pulls = max(c.rollouts.pulls, pulls) }()
	for _, n := range list {
		if c.installer(set, n).Spec.NodeName == "" {
			continue
		}
		if n.notReady || c.rollouts.pulling[n.name] {
			continue
		}
		report, err := rollout.ReportOf(n.object())
		if err != nil {
			c.t.Error(err)
		}
		same := report != nil && report.RequestID == request.ID()
		switch {
		case same && report.Phase == rollout.Refused && c.rollouts.refused[n.name] == "" && request.Target != rollout.Observe:
			c.change(n, request)
			return
		case same && report.Phase.Stopped() && !rollout.Resumed(n.object(), report.Attempt):
			if request.Target != rollout.Observe {
				return
			}
		case same && (report.Phase == rollout.Done || report.Phase == rollout.Observed):
			set.Status.UpdatedNumberScheduled++
			set.Status.NumberAvailable++
		case request.Target == rollout.Observe:
			pulls++
			c.report(n, request, rollout.Observed)
		case !changed && !rollout.Paused(set):
			changed = true
			c.change(n, request)
		}
	}
}

// Update is what an installer does, without what goes by itself.
func (c *cluster) change(n *fakeNode, request rollout.Request) {
	c.rollouts.started = append(c.rollouts.started, n.name)
	outcome := c.rollouts.outcome[n.name]
	if outcome == "" {
		outcome = rollout.Done
	}
	if outcome == rollout.Done {
		switch {
		case request.Target.Guarded():
			n.status, n.mode, n.version = 0, request.Target.Mode(), c.versionOf(request)
		default:
			n.status, n.version, n.pods = http.StatusNotFound, stock, nil
		}
	} else if outcome != rollout.Refused {
		n.labels[rollout.StateLabel] = rollout.StateFailed
	}
	c.report(n, request, outcome)
}

func (c *cluster) report(n *fakeNode, request rollout.Request, phase rollout.Phase) {
	is := rollout.Kubelet{Version: n.version}
	if n.status == 0 {
		is.Mode = n.mode
		if is.Mode == "" {
			is.Mode = guard.Enforce
		}
	}
	report := rollout.Report{
		RequestID: request.ID(), Pool: n.labels["pool"], Target: request.Target, Phase: phase, Architecture: "amd64",
		Before: rollout.Kubelet{Version: stock}, Now: is,
		Offered: rollout.Kubelet{Version: c.versionOf(request), SHA256: strings.Repeat("5", 64)},
		Time:    metav1.NewTime(now.Add(-10*time.Minute + time.Duration(c.rollouts.reports)*time.Second)),
	}
	c.rollouts.reports++
	if sum := c.rollouts.checksums[n.name]; sum != "" {
		report.Offered.SHA256 = sum
	}
	if version := c.rollouts.lying[n.name]; version != "" && phase == rollout.Done {
		n.status, n.version = http.StatusNotFound, version
	}
	if why, refused := c.rollouts.refused[n.name]; refused {
		report.Phase, report.Reason, report.Message, report.Offered = rollout.Refused, rollout.ReasonForeignGuard, why, rollout.Kubelet{}
	}
	if phase == rollout.RolledBack || phase == rollout.Failed {
		report.Attempt = fmt.Sprintf("attempt-%d", c.rollouts.reports)
	}
	if phase == rollout.RolledBack {
		report.Reason, report.Message = rollout.ReasonNotStarted, "the kubelet ended 3 times within 60 s; the old one runs again"
	}
	if n.annotations == nil {
		n.annotations = map[string]string{}
	}
	n.annotations[rollout.ReportAnnotation] = report.Annotation()
}

// twoPools is a cluster with two pools of stock nodes and a node that is in neither.
func twoPools(t *testing.T) *cluster {
	in := func(pool string) map[string]string { return map[string]string{"pool": pool} }
	return newCluster(t,
		&fakeNode{name: "blue-1", version: stock, status: http.StatusNotFound, labels: in("blue")},
		&fakeNode{name: "blue-2", version: stock, status: http.StatusNotFound, labels: in("blue")},
		&fakeNode{name: "green-1", version: stock, status: http.StatusNotFound, labels: in("green")},
		&fakeNode{name: "other-1", version: stock, status: http.StatusNotFound, labels: in("other")},
	)
}

// manyNodes is a cluster with one pool of n nodes.
func manyNodes(t *testing.T, n int) *cluster {
	var list []*fakeNode
	for i := range n {
		list = append(list, &fakeNode{name: fmt.Sprintf("node-%03d", i), version: stock, status: http.StatusNotFound, labels: map[string]string{"pool": "blue"}})
	}
	return newCluster(t, list...)
}

// startBlue is the first roll-out of the pool blue.
var startBlue = []string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage}

// start is the first roll-out of both pools of twoPools.
var start = []string{"rollout", "start", "--pool", "blue=pool=blue", "--pool", "green=pool=green", "--mode", "Audit", "--image", installerImage}

// rolledOut is twoPools after start.
func rolledOut(t *testing.T) *cluster {
	c := twoPools(t)
	c.mustRun("", append(start, "--yes")...)
	c.rollouts.started, c.writes = nil, nil
	return c
}

// requested is the request in the template of a pool.
func (c *cluster) requested(pool string) rollout.Request {
	c.t.Helper()
	set := c.rollouts.sets[rollout.DaemonSetName(pool)]
	require.NotNil(c.t, set, "the pool has no DaemonSet")
	request, err := rollout.RequestOf(set)
	require.NoError(c.t, err)
	return request
}

// requireUntouched demands that no node was changed and nothing of a roll-out is left.
func (c *cluster) requireUntouched() {
	c.t.Helper()
	require.Empty(c.t, c.rollouts.started)
	require.Empty(c.t, c.rollouts.sets)
	for _, n := range c.nodes {
		require.NotContains(c.t, n.annotations, rollout.ReportAnnotation)
		require.NotContains(c.t, n.annotations, rollout.ResumeAnnotation)
		require.NotContains(c.t, n.labels, rollout.StateLabel)
	}
}
