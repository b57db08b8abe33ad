package policies

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/rollout"
)

const (
	rolloutManifests = "../rollout/*policy.yaml"
	installer        = "system:serviceaccount:kubelet-guard-rollout:guard-installer"
	inRollout        = "namespace: kubelet-guard-rollout"
)

func TestInstallersWriteToTheirOwnNode(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	node := func(name, spec string, metadata ...string) string {
		return "{apiVersion: v1, kind: Node, metadata: {name: " + name + strings.Join(metadata, "") + "}, spec: {" + spec + "}}"
	}
	const (
		spec      = "providerID: x, taints: [{key: other, effect: NoExecute, value: v}, {key: kubelet-guard.io/unguarded, effect: NoSchedule}]"
		untainted = "providerID: x, taints: [{key: other, effect: NoExecute, value: v}]"
	)
	// labelled is the Node with a label and an annotation of others.
	const others = ", labels: {pool: blue}, annotations: {example.com/own: x}"
	plain, labelled := node("n1", spec), node("n1", spec, others)
	for name, c := range map[string]struct {
		node, after, want string
	}{
		"another annotation":       {"n1", node("n1", spec, ", annotations: {example.com/own: x}"), "may set the annotation kubelet-guard.io/rollout-report and no other"},
		"an owner":                 {"n1", node("n1", spec, ", ownerReferences: [{apiVersion: v1, kind: Pod, name: p, uid: u}]"), "may not change its spec, finalizers or owners"},
		"the pod CIDRs of the pod": {"n1", node("n1", spec+", podCIDRs: [192.0.2.0/24]"), "may not change its spec"},
		"its report":               {"n1", node("n1", spec, `, annotations: {kubelet-guard.io/rollout-report: "{}"}`), ""},
		"its mark":                 {"n1", node("n1", spec, `, labels: {kubelet-guard.io/rollout: failed}`), ""},
		"another label":            {"n1", node("n1", spec, `, labels: {pool: blue}`), "and no other"},
		"the report of another":    {"n2", node("n1", spec, `, annotations: {kubelet-guard.io/rollout-report: "{}"}`), "this one is on n2"},
		"a token of no node":       {"", node("n1", spec), "this one is on none"},
		"the taint":                {"n1", node("n1", untainted), ""},
		"another taint":            {"n1", node("n1", "providerID: x, taints: [{key: kubelet-guard.io/unguarded, effect: NoSchedule}]"), "and change no other"},
		"all taints":               {"n1", node("n1", "providerID: x"), "and change no other"},
		"a new taint":              {"n1", node("n1", strings.ReplaceAll(spec, "[{", "[{key: new, effect: NoExecute}, {")), "and change no other"},
		"another value":            {"n1", node("n1", strings.ReplaceAll(spec, "value: v", "value: w")), "and change no other"},
		"another time of a taint":  {"n1", node("n1", strings.ReplaceAll(spec, "value: v", "value: v, timeAdded: '2026-01-02T03:04:05Z'")), "and change no other"},
		"the provider":             {"n1", node("n1", strings.ReplaceAll(spec, "providerID: x", "providerID: y")), "may not change its spec"},
		"cordon":                   {"n1", node("n1", spec+", unschedulable: true"), "may not change its spec"},
		"a finalizer":              {"n1", node("n1", spec, ", finalizers: [example.com/x]"), "may not change its spec"},
		"the taint of another":     {"n2", node("n1", untainted), "this one is on n2"},
		"the taint and a cordon":   {"n1", node("n1", untainted+", unschedulable: true"), "may not change its spec"},
		"the pod CIDR of the pod":  {"n1", node("n1", spec+", podCIDR: 192.0.2.0/24"), "may not change its spec"},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, _ := all.refusal(t, "installer.rollout.kubelet-guard.io", review{resource: "nodes", old: plain, new: c.after, user: installer, node: c.node})
			assertRefusal(t, c.want, refusal)
		})
	}
	for name, c := range map[string]struct {
		after, want string
	}{
		"its report next to others":  {node("n1", spec, `, labels: {pool: blue}, annotations: {example.com/own: x, kubelet-guard.io/rollout-report: "{}"}`), ""},
		"another label removed":      {node("n1", spec, ", annotations: {example.com/own: x}"), "may set the label kubelet-guard.io/rollout and no other"},
		"another annotation removed": {node("n1", spec, ", labels: {pool: blue}"), "may set the annotation kubelet-guard.io/rollout-report and no other"},
		"another annotation changed": {node("n1", spec, ", labels: {pool: blue}, annotations: {example.com/own: y}"), "may set the annotation kubelet-guard.io/rollout-report and no other"},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, _ := all.refusal(t, "installer.rollout.kubelet-guard.io", review{resource: "nodes", old: labelled, new: c.after, user: installer, node: "n1"})
			assertRefusal(t, c.want, refusal)
		})
	}
}

func assertRefusal(t *testing.T, want, refusal string) {
	t.Helper()
	if want == "" {
		assert.Empty(t, refusal)
		return
	}
	assert.Contains(t, refusal, want)
}

func TestInstallersHaveSlotsOfTheirOwnNode(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	slot := func(holder, owner string, more ...string) string {
		return "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {" + inRollout + ", name: guard-installer-blue-0, labels: {kubelet-guard.io/rollout-pool: blue}" +
			", ownerReferences: [{apiVersion: v1, kind: Node, name: " + owner + ", uid: u}]" + strings.Join(more, "") + "}, spec: {holderIdentity: " + holder + "}}"
	}
	own, other := slot("n1", "n1"), slot("n2", "n2")
	stopped := slot("n1", "n1", ", annotations: {kubelet-guard.io/rollout-stopped: x}")
	for name, c := range map[string]struct {
		node, before, after, want string
	}{
		"take a slot":                    {"n1", "", own, ""},
		"say that the roll-out stands":   {"n1", own, stopped, ""},
		"release it":                     {"n1", own, "", ""},
		"take one for another":           {"n1", "", other, "this one is on n1"},
		"take over":                      {"n1", other, own, "is that of node n2"},
		"give away":                      {"n1", own, other, "an installer takes slots for its own node only"},
		"release that of another":        {"n1", other, "", "is that of node n2"},
		"a token of no node":             {"", "", own, "this one is on none"},
		"a slot of nobody, by no node":   {"", slot("''", "n1"), "", "this one is on none"},
		"a slot that outlives its node":  {"n1", "", strings.Replace(own, "kind: Node", "kind: Pod", 1), "must be owned by the Node"},
		"a slot of another's Node":       {"n1", "", slot("n1", "n2"), "must be owned by the Node"},
		"a slot with several owners":     {"n1", "", strings.Replace(own, "uid: u}", "uid: u}, {apiVersion: v1, kind: Pod, name: p, uid: w}", 1), "must be owned by the Node"},
		"a slot without an owner":        {"n1", "", strings.Replace(own, "[{apiVersion: v1, kind: Node, name: n1, uid: u}]", "[]", 1), "must be owned by the Node"},
		"a slot with a finalizer":        {"n1", "", slot("n1", "n1", ", finalizers: [example.com/x]"), "must be owned by the Node"},
		"a Lease that is no slot":        {"n1", "", strings.Replace(own, "guard-installer-blue-0", "leader", 1), "not that of a slot of the pool"},
		"a slot with the label of other": {"n1", "", strings.Replace(own, "rollout-pool: blue", "rollout-pool: green", 1), "not that of a slot of the pool"},
	} {
		t.Run(name, func(t *testing.T) {
			r := review{resource: "leases.coordination.k8s.io", old: c.before, new: c.after, user: installer, node: c.node}
			refusal, _ := all.refusal(t, "slots.rollout.kubelet-guard.io", r)
			assertRefusal(t, c.want, refusal)
			r.user = "jane"
			refusal, _ = all.refusal(t, "slots.rollout.kubelet-guard.io", r)
			assert.Empty(t, refusal, "others are held by their rights")
		})
	}
}

func TestInstallersCreateEventsAboutTheirOwnNode(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	event := func(kind, name, reason string, more ...string) string {
		return "{apiVersion: v1, kind: Event, metadata: {namespace: default, name: e}, involvedObject: {kind: " + kind + ", name: " + name + "}" +
			", reason: " + reason + ", type: Warning, source: {component: guard-installer, host: n1}" + strings.Join(more, "") + "}"
	}
	own := event("Node", "n1", rollout.EventDone)
	cases := map[string]struct {
		node, before, after, want string
	}{
		"about another node":          {"n1", "", event("Node", "n2", rollout.EventDone), "about Node n2 was not written"},
		"about a pod":                 {"n1", "", event("Pod", "n1", rollout.EventDone), "about Pod n1 was not written"},
		"about nothing":               {"n1", "", strings.Replace(own, "involvedObject: {kind: Node, name: n1}", "involvedObject: {}", 1), "about nothing  was not written"},
		"by no node":                  {"", "", own, "this one is on none"},
		"a change":                    {"n1", own, own, "creates events about its own node only"},
		"with a reason of others":     {"n1", "", event("Node", "n1", "Killing"), "the event Killing was not written"},
		"without a reason":            {"n1", "", event("Node", "n1", "''"), "was not written"},
		"in the name of the kubelet":  {"n1", "", strings.Replace(own, "component: guard-installer", "component: kubelet", 1), "in its own name"},
		"reported by the kubelet":     {"n1", "", event("Node", "n1", rollout.EventDone, ", reportingComponent: kubelet"), "in its own name"},
		"from another host":           {"n1", "", strings.Replace(own, "host: n1", "host: n2", 1), "in its own name"},
		"about an object of the node": {"n1", "", strings.Replace(own, "name: n1}", "name: n1, namespace: default}", 1), "creates events about its own node only"},
	}
	for _, reason := range rollout.EventReasons() {
		cases[reason] = struct{ node, before, after, want string }{"n1", "", event("Node", "n1", reason), ""}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := review{resource: "events", old: c.before, new: c.after, user: installer, node: c.node}
			refusal, _ := all.refusal(t, "events.rollout.kubelet-guard.io", r)
			assertRefusal(t, c.want, refusal)
			r.user = "system:node:n1"
			refusal, _ = all.refusal(t, "events.rollout.kubelet-guard.io", r)
			assert.Empty(t, refusal, "others are held by their rights")
		})
	}
}

// The policy of events covers one namespace: rights to others must not come back unseen.
func TestInstallersMayCreateEventsInOneNamespace(t *testing.T) {
	rules := map[string][]rbacv1.PolicyRule{}
	documents(t, "../rollout/installer.yaml", func(kind string, text []byte) {
		if kind != "Role" && kind != "ClusterRole" {
			return
		}
		var role rbacv1.Role
		require.NoError(t, yaml.Unmarshal(text, &role))
		for _, rule := range role.Rules {
			if slices.Contains(rule.Resources, "events") || slices.Contains(rule.Resources, "*") {
				rules[kind+" "+role.Namespace] = append(rules[kind+" "+role.Namespace], rule)
			}
		}
	})
	assert.Equal(t, map[string][]rbacv1.PolicyRule{
		"Role default": {{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}}},
	}, rules)
}

const (
	daemonSetController = "system:serviceaccount:kube-system:daemon-set-controller"
	editor              = "editor"
)

func TestPodsOfRollOutsAreThoseOfDaemonSets(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	pod := func(image string, more ...string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {" + inRollout + ", name: p" + strings.Join(more, "") + "}, spec: {containers: [{name: installer, image: " + image + "}]}}"
	}
	exec := "{apiVersion: v1, kind: PodExecOptions, metadata: {" + inRollout + ", name: p}}"
	for name, c := range map[string]struct {
		review
		allowed bool
	}{
		"the controller creates":                     {review{resource: "pods", new: pod("a"), user: daemonSetController}, true},
		"the controller of all creates":              {review{resource: "pods", new: pod("a"), user: "system:kube-controller-manager"}, true},
		"an editor creates":                          {review{resource: "pods", new: pod("a"), user: editor}, false},
		"another controller creates":                 {review{resource: "pods", new: pod("a"), user: "system:serviceaccount:kube-system:job-controller"}, false},
		"who may roll out creates":                   {review{resource: "pods", new: pod("a"), user: editor, may: "use"}, true},
		"in another namespace":                       {review{resource: "pods", new: strings.Replace(pod("a"), inRollout, "namespace: default", 1), user: editor}, true},
		"an editor changes the image":                {review{resource: "pods", old: pod("a"), new: pod("b"), user: editor}, false},
		"the collector changes metadata":             {review{resource: "pods", old: pod("a"), new: pod("a", ", finalizers: [x/y]"), user: "system:serviceaccount:kube-system:generic-garbage-collector"}, true},
		"an editor adds a container for debugging":   {review{resource: "pods/ephemeralcontainers", old: pod("a"), new: pod("a"), user: editor}, false},
		"an editor executes":                         {review{resource: "pods/exec", new: exec, connect: true, user: editor}, false},
		"an editor attaches":                         {review{resource: "pods/attach", new: exec, connect: true, user: editor}, false},
		"who may roll out executes":                  {review{resource: "pods/exec", new: exec, connect: true, user: editor, may: "use"}, true},
		"someone deletes":                            {review{resource: "pods", old: pod("a"), user: editor}, true},
		"an override is no right to roll out at all": {review{resource: "pods", new: pod("a"), user: editor, override: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, _ := all.refusal(t, "pods.rollout.kubelet-guard.io", c.review)
			assert.Equal(t, c.allowed, refusal == "", refusal)
		})
	}
}

func TestDaemonSetsOfRollOutsAreThoseOfPools(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	set := func(image, request string, more ...string) string {
		return "{apiVersion: apps/v1, kind: DaemonSet, metadata: {" + inRollout + ", name: guard-installer-blue" + strings.Join(more, "") + "}, spec: {template: {metadata: {annotations: {kubelet-guard.io/rollout-request: '" + request + "'}}" +
			", spec: {serviceAccountName: guard-installer, containers: [{name: installer, image: '" + image + "'}]}}}}"
	}
	good := set("r/i:1", `{"target":"Audit","image":"r/i:1"}`)
	for name, c := range map[string]struct {
		review
		allowed bool
	}{
		"who may roll out":                  {review{new: good, may: "use"}, true},
		"by hand, with spaces":              {review{new: set("r/i:1", `{"target": "Audit", "image": "r/i:1"}`), may: "use"}, true},
		"an editor":                         {review{new: good}, false},
		"an editor changes the image":       {review{old: good, new: set("r/i:2", `{"target":"Audit","image":"r/i:2"}`)}, false},
		"an editor takes the pause away":    {review{old: set("r/i:1", "", ", annotations: {kubelet-guard.io/rollout-paused: 'true'}"), new: good}, false},
		"the collector removes a finalizer": {review{old: set("r/i:1", "", ", finalizers: [x/y]"), new: set("r/i:1", "")}, true},
		"another image than the request's":  {review{new: set("r/i:2", `{"target":"Audit","image":"r/i:1"}`), may: "use"}, false},
		"the start of another image":        {review{new: set("r/i:1", `{"target":"Audit","image":"r/i:1-2"}`), may: "use"}, false},
		"another container as well":         {review{new: strings.Replace(good, "containers: [", "containers: [{name: x, image: x}, ", 1), may: "use"}, false},
		"a container before":                {review{new: strings.Replace(good, "containers: [", "initContainers: [{name: x, image: x}], containers: [", 1), may: "use"}, false},
		"another name":                      {review{new: strings.Replace(good, "name: guard-installer-blue", "name: other", 1), may: "use"}, false},
		"another account":                   {review{new: strings.Replace(good, "serviceAccountName: guard-installer", "serviceAccountName: default", 1), may: "use"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.resource, c.user = "daemonsets.apps", editor
			refusal, _ := all.refusal(t, "daemonsets.rollout.kubelet-guard.io", c.review)
			assert.Equal(t, c.allowed, refusal == "", refusal)
		})
	}
}

func TestTokensOfInstallersAreForTheirPods(t *testing.T) {
	all := loadPolicies(t, rolloutManifests)
	token := "{apiVersion: authentication.k8s.io/v1, kind: TokenRequest, metadata: {" + inRollout + ", name: guard-installer}}"
	secret := func(kind string) string {
		return "{apiVersion: v1, kind: Secret, metadata: {" + inRollout + ", name: s}, type: " + kind + "}"
	}
	for name, c := range map[string]struct {
		review
		allowed bool
	}{
		"a kubelet":                  {review{resource: "serviceaccounts/token", new: token, user: "system:node:n1", groups: []string{"system:nodes"}}, true},
		"an editor":                  {review{resource: "serviceaccounts/token", new: token, user: editor}, false},
		"who may roll out":           {review{resource: "serviceaccounts/token", new: token, user: editor, may: "use"}, true},
		"an editor, by a secret":     {review{resource: "secrets", new: secret("kubernetes.io/service-account-token"), user: editor}, false},
		"a secret of another kind":   {review{resource: "secrets", new: secret("Opaque"), user: editor}, true},
		"a secret without a kind":    {review{resource: "secrets", new: secret("''"), user: editor}, true},
		"a secret, may roll out":     {review{resource: "secrets", new: secret("kubernetes.io/service-account-token"), user: editor, may: "use"}, true},
		"a kubelet, for a secret":    {review{resource: "secrets", new: secret("kubernetes.io/service-account-token"), user: "system:node:n1", groups: []string{"system:nodes"}}, false},
		"an editor, somewhere other": {review{resource: "serviceaccounts/token", new: strings.Replace(token, inRollout, "namespace: default", 1), user: editor}, true},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, _ := all.refusal(t, "tokens.rollout.kubelet-guard.io", c.review)
			assert.Equal(t, c.allowed, refusal == "", refusal)
		})
	}
}
