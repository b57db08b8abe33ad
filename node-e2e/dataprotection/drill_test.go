package dataprotection

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/dataprotection/history"
)

const definitionKey = "apiextensions.k8s.io/customresourcedefinitions/"

var (
	output  = flag.String("output", "", "The folder with the programs: _output; empty skips the drill")
	objects = flag.Int("objects", 1000, "Custom resources of a definition that is deleted")
	older   = flag.String("older", "", "An older version of Kubernetes whose API server reads a snapshot; empty: none does")
	table   = flag.String("table", "", "File for the table of figures")
)

// drill is a control plane with the program under test, and the figures that it reached.
type drill struct {
	*controlPlane
	journal string
	figures [][3]string
}

func TestDrill(t *testing.T) {
	if *output == "" {
		t.Skip("needs programs: make drill")
	}
	folder, err := filepath.Abs(*output)
	require.NoError(t, err)
	*output = folder
	d := &drill{controlPlane: newControlPlane(t, folder)}
	d.journal = filepath.Join(d.dir, "journal")
	// One encrypted object that does not decrypt may be damaged; of several, the configuration is wrong.
	for _, name := range []string{"encrypted-1", "encrypted-2"} {
		_, err := d.kube.CoreV1().Secrets("default").Create(context.Background(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	// A parent's control plane outlives its subtests, and their failures. Each stands alone.
	for _, accident := range []struct {
		name string
		run  func(*testing.T, *drill)
		// long ones wait for controllers or time limits; make test-drill leaves them out.
		long bool
	}{
		{name: "log", run: testLog},
		{name: "definition", run: func(t *testing.T, d *drill) { testDefinition(t, d, "widgets", "Widget", *objects) }, long: true},
		{name: "large definition", run: func(t *testing.T, d *drill) { testDefinition(t, d, "bolts", "Bolt", 30_000) }, long: true},
		{name: "namespace", run: testNamespace, long: true},
		{name: "snapshot", run: testSnapshot},
		{name: "save and verify", run: testSave},
		{name: "preflight and access", run: testChecks},
		{name: "encryption", run: testEncryption},
		{name: "damage", run: testDamage, long: true},
		{name: "refusals", run: testRefusals, long: true},
		{name: "interruption", run: testInterruption, long: true},
		{name: "bad input", run: testBadInput},
		{name: "unreachable etcd", run: testUnreachable, long: true},
		{name: "random deletions", run: testRandomDeletions, long: true},
		{name: "compaction", run: testCompaction},
		{name: "start", run: testStart, long: true},
		{name: "whole restore", run: testWholeRestore, long: true},
	} {
		t.Run(accident.name, func(t *testing.T) {
			if accident.long && testing.Short() {
				t.Skip("long: make drill")
			}
			d.controlPlane.t = t
			accident.run(t, d)
		})
	}
	d.controlPlane.t = t
	d.report(t)
}

// figure records a row of the table.
func (d *drill) figure(name, target, reached string, arguments ...any) {
	d.figures = append(d.figures, [3]string{name, target, fmt.Sprintf(reached, arguments...)})
}

func (d *drill) report(t *testing.T) {
	var text strings.Builder
	text.WriteString("| case | to reach | reached |\n|---|---|---|\n")
	for _, f := range d.figures {
		fmt.Fprintf(&text, "| %s | %s | %s |\n", f[0], f[1], f[2])
	}
	fmt.Print(text.String())
	if *table != "" {
		require.NoError(t, os.MkdirAll(filepath.Dir(*table), 0o755))
		require.NoError(t, os.WriteFile(*table, []byte(text.String()), 0o644))
	}
}

// result of a run of guard-etcd.
type result struct {
	out, errOut string
	code        int
	took        time.Duration
	// rss is the peak of the resident memory, private that of the part which is no file's, in bytes.
	rss, private int64
}

// guard runs guard-etcd as on a kubeadm host: the API server's manifest says the rest.
func (d *drill) guard(arguments ...string) result {
	d.t.Helper()
	return d.run(append([]string{"--apiserver-manifest=" + d.manifest(), "--kubeconfig=" + d.kubeconfig()}, arguments...)...)
}

func (d *drill) run(arguments ...string) result {
	d.t.Helper()
	if i := slices.IndexFunc(arguments, func(verb string) bool { return verb == "restore" || verb == "scan" }); i >= 0 {
		// Before the other flags, of which the last one counts.
		arguments = slices.Insert(arguments, i+1, "--journal-dir="+d.journal)
	}
	command := exec.Command(filepath.Join(*output, "bin/guard-etcd"), arguments...)
	var out, errOut bytes.Buffer
	command.Stdout, command.Stderr = &out, &errOut
	start := time.Now()
	require.NoError(d.t, command.Start())
	ended, private := make(chan struct{}), make(chan int64)
	go func() { private <- watchPrivate(command.Process.Pid, ended) }()
	err := command.Wait()
	close(ended)
	r := result{out: out.String(), errOut: errOut.String(), took: time.Since(start), private: <-private}
	if usage, ok := command.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.rss = usage.Maxrss * 1024
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else {
		require.NoError(d.t, err)
	}
	d.t.Logf("guard-etcd %s: exit code %d after %s\n%s%s", strings.Join(arguments[2:], " "), r.code, r.took.Round(time.Millisecond), r.out, r.errOut)
	return r
}

// succeed runs guard-etcd and expects exit code 0.
func (d *drill) succeed(arguments ...string) result {
	d.t.Helper()
	r := d.guard(arguments...)
	require.Zero(d.t, r.code, r.errOut)
	return r
}

// fail runs guard-etcd and expects an error with the words; nothing is written meanwhile.
func (d *drill) fail(words string, arguments ...string) result {
	d.t.Helper()
	before := d.state(prefix)
	r := d.guard(arguments...)
	require.Equal(d.t, 1, r.code, r.out)
	require.Contains(d.t, r.out+r.errOut, words)
	require.NotContains(d.t, r.errOut, ".go:", "no log of a library")
	require.Equal(d.t, stable(before), stable(d.state(prefix)), "an error writes nothing")
	return r
}

// state is every key below a prefix with the hash of its value.
func (d *drill) state(below string) map[string][32]byte {
	response, err := d.root.Get(context.Background(), below, clientv3.WithPrefix())
	require.NoError(d.t, err)
	state := map[string][32]byte{}
	for _, kv := range response.Kvs {
		state[string(kv.Key)] = sha256.Sum256(kv.Value)
	}
	return state
}

// stable leaves out what the control plane itself writes all the time.
func stable(state map[string][32]byte) map[string][32]byte {
	for key := range state {
		for _, moving := range []string{"leases/", "events/", "masterleases/", "ranges/", "peerserverleases/"} {
			if strings.HasPrefix(key, prefix+moving) {
				delete(state, key)
			}
		}
	}
	return state
}

func secretOf(name string) string {
	hash := sha256.Sum256([]byte(name))
	return base64.StdEncoding.EncodeToString(hash[:])
}

// definitionOf is a namespaced definition of example.com with a list of all values.
func (d *drill) createDefinition(plural, kind string) schema.GroupVersionResource {
	ctx := context.Background()
	definition := &unstructured.Unstructured{}
	require.NoError(d.t, json.Unmarshal([]byte(fmt.Sprintf(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"%[1]s.example.com"},
		"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"%[1]s","singular":"%[3]s","kind":"%[2]s","listKind":"%[2]sList"},
		"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`, plural, kind, strings.ToLower(kind))), definition))
	_, err := d.dynamic.Resource(definitions).Create(ctx, definition, metav1.CreateOptions{})
	require.NoError(d.t, err)
	resource := schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: plural}
	d.await(plural+" to be served", func(ctx context.Context) error {
		_, err := d.dynamic.Resource(resource).Namespace("default").List(ctx, metav1.ListOptions{Limit: 1})
		return err
	})
	return resource
}

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// childPrefix starts the names of what custom resources of a kind own.
func childPrefix(kind string) string { return "child-of-" + strings.ToLower(kind) + "-" }

// createInstances creates custom resources of about 800 bytes; through the API the first ones,
// with a finalizer and a ConfigMap that they own, and the rest as copies in etcd, which is what the API
// server would have written.
func (d *drill) createInstances(resource schema.GroupVersionResource, kind string, count, withFinalizer int) {
	ctx := context.Background()
	create := func(i int, finalizers []string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": kind, "spec": map[string]any{"text": strings.Repeat("x", 500)}}}
		o.SetName(fmt.Sprintf("object-%05d", i))
		o.SetFinalizers(finalizers)
		created, err := d.dynamic.Resource(resource).Namespace("default").Create(ctx, o, metav1.CreateOptions{})
		require.NoError(d.t, err)
		return created
	}
	for i := range withFinalizer {
		owner := create(i, []string{"example.com/drill"})
		_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Name:            childPrefix(kind) + owner.GetName(),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: kind, Name: owner.GetName(), UID: owner.GetUID()}},
		}}, metav1.CreateOptions{})
		require.NoError(d.t, err)
	}
	model := create(withFinalizer, nil)
	key := prefix + "example.com/" + resource.Resource + "/default/"
	response, err := d.root.Get(ctx, key+model.GetName())
	require.NoError(d.t, err)
	require.Len(d.t, response.Kvs, 1)
	var puts []clientv3.Op
	for i := withFinalizer + 1; i < count; i++ {
		name := fmt.Sprintf("object-%05d", i)
		// No two objects have a UID, of whatever kind.
		hash := sha256.Sum256([]byte(key + name))
		uid := fmt.Sprintf("%x-%x-%x-%x-%x", hash[:4], hash[4:6], hash[6:8], hash[8:10], hash[10:16])
		value := strings.ReplaceAll(strings.ReplaceAll(string(response.Kvs[0].Value), model.GetName(), name), string(model.GetUID()), uid)
		if puts = append(puts, clientv3.OpPut(key+name, value)); len(puts) == 100 || i == count-1 {
			_, err := d.root.Txn(ctx).Then(puts...).Commit()
			require.NoError(d.t, err)
			puts = nil
		}
	}
}

// list is the first list that answers, through the API and from etcd.
func (d *drill) list(resource schema.GroupVersionResource) *unstructured.UnstructuredList {
	var list *unstructured.UnstructuredList
	d.await(resource.Resource+" to be listed", func(ctx context.Context) (err error) {
		list, err = d.dynamic.Resource(resource).Namespace("default").List(ctx, metav1.ListOptions{})
		return err
	})
	return list
}

// deleteDefinition deletes a definition as a person would, and removes the finalizers that its
// resources then wait with.
func (d *drill) deleteDefinition(resource schema.GroupVersionResource, kind string, withFinalizer int) {
	ctx := context.Background()
	require.NoError(d.t, d.dynamic.Resource(definitions).Delete(ctx, resource.Resource+".example.com", metav1.DeleteOptions{}))
	for i := range withFinalizer {
		name := fmt.Sprintf("object-%05d", i)
		d.await(name+" to terminate", func(ctx context.Context) error {
			o, err := d.dynamic.Resource(resource).Namespace("default").Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if o.GetDeletionTimestamp() == nil {
				return errors.New("not yet")
			}
			_, err = d.dynamic.Resource(resource).Namespace("default").Patch(ctx, name, types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{})
			return err
		})
	}
	d.await("the definition and what its resources own to be gone", func(ctx context.Context) error {
		if _, err := d.dynamic.Resource(definitions).Get(ctx, resource.Resource+".example.com", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the definition: %w", err)
		}
		children, err := d.kube.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
		for _, child := range children.Items {
			if strings.HasPrefix(child.Name, childPrefix(kind)) {
				return fmt.Errorf("%s is there", child.Name)
			}
		}
		return err
	})
}

// testDefinition is the incident that this project starts from: a definition is deleted by hand.
func testDefinition(t *testing.T, d *drill, plural, kind string, count int) {
	const withFinalizer = 20
	resource := d.createDefinition(plural, kind)
	d.createInstances(resource, kind, count, withFinalizer)
	d.awaitGarbageCollector(resource, kind)
	below := []string{prefix + "example.com/" + plural + "/", prefix + definitionKey + plural + ".example.com", prefix + "configmaps/default/" + childPrefix(kind)}
	all := func() map[string][32]byte {
		state := map[string][32]byte{}
		for _, folder := range below {
			for key, hash := range d.state(folder) {
				state[key] = hash
			}
		}
		return state
	}
	before := all()
	require.Len(t, before, count+withFinalizer+1)

	// One who watches all the time sees each object come back, and none go after that.
	var added, deleted atomic.Int64
	var restored atomic.Bool
	informers := dynamicinformer.NewDynamicSharedInformerFactory(d.dynamic, 0)
	informer := informers.ForResource(resource).Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) {
			if restored.Load() {
				added.Add(1)
			}
		},
		DeleteFunc: func(any) {
			if restored.Load() {
				deleted.Add(1)
			}
		},
	})
	require.NoError(t, err)
	stop := make(chan struct{})
	defer close(stop)
	informers.Start(stop)
	informers.WaitForCacheSync(stop)

	d.deleteDefinition(resource, kind, withFinalizer)
	require.Empty(t, all())
	d.await("the informer to see them go", func(context.Context) error {
		if n := len(informer.GetStore().List()); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
	restored.Store(true)

	log := d.succeed("log")
	require.Contains(t, log.out, kind)
	require.Contains(t, log.out, "CustomResourceDefinition")
	plan := d.succeed("restore", "crd/"+plural+".example.com")
	require.Contains(t, plan.out, fmt.Sprintf("Plan: %d created, 0 replaced, 0 present, 0 left out, 0 refused", len(before)))
	require.Empty(t, all(), "a plan writes nothing")
	if len(before) > 100 {
		d.fail("--expect=", "restore", "crd/"+plural+".example.com", "--apply")
	}

	// The first list that answers, while it runs.
	first := make(chan int, 1)
	go func() {
		for {
			list, err := d.dynamic.Resource(resource).Namespace("default").List(context.Background(), metav1.ListOptions{})
			if err == nil {
				first <- len(list.Items)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	applied := d.succeed("restore", "crd/"+plural+".example.com", "--apply", "--expect="+fmt.Sprint(len(before)), "-o", "json")
	require.Equal(t, count, <-first, "the first list has all")
	require.Equal(t, before, all(), "the same bytes")
	d.await("the informer to see all", func(context.Context) error {
		if added.Load() < int64(count) {
			return fmt.Errorf("%d", added.Load())
		}
		return nil
	})
	// The garbage collector resyncs its resources every 30 seconds.
	time.Sleep(35 * time.Second)
	require.Len(t, keysOf(all()), len(before), "children are kept")
	require.Equal(t, int64(count), added.Load())
	require.Zero(t, deleted.Load())
	again := d.succeed("restore", "crd/"+plural+".example.com", "--apply")
	require.Contains(t, again.out, "Nothing to write")
	d.figure(fmt.Sprintf("CRD + %d CRs, finalizers, owned children", count), "<= 3 s after --apply (1,000), <= 10 s (30,000)",
		"%.1f s written, %.1f s in all; bytes equal, first list %d, informer %d adds, children kept", secondsOf(t, applied), applied.took.Seconds(), count, added.Load())
}

// awaitGarbageCollector waits until the garbage collector knows the kind: it deletes what a deleted
// resource owned.
func (d *drill) awaitGarbageCollector(resource schema.GroupVersionResource, kind string) {
	ctx := context.Background()
	owner := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": kind}}
	owner.SetName("probe")
	owner, err := d.dynamic.Resource(resource).Namespace("default").Create(ctx, owner, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name: "probe", OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: kind, Name: "probe", UID: owner.GetUID()}},
	}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	require.NoError(d.t, d.dynamic.Resource(resource).Namespace("default").Delete(ctx, "probe", metav1.DeleteOptions{}))
	d.await("the garbage collector to know "+resource.Resource, func(ctx context.Context) error {
		_, err := d.kube.CoreV1().ConfigMaps("default").Get(ctx, "probe", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("what the probe owned is there: %w", err)
	})
}

func keysOf(state map[string][32]byte) []string {
	var keys []string
	for key := range state {
		keys = append(keys, key)
	}
	return keys
}

// secondsOf is how long the writes took.
func secondsOf(t *testing.T, r result) float64 {
	var content struct {
		Seconds float64 `json:"seconds"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &content))
	return content.Seconds
}

// createNamespace creates a namespace with a Deployment, a StatefulSet with a claim, a Service, a
// Secret and a ConfigMap, and waits for the pods' objects. No node runs them.
func (d *drill) createNamespace(name string) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	template := func(app string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/main"}}}}
	}
	selector := func(app string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	_, err = d.kube.CoreV1().Secrets(name).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "password"}, StringData: map[string]string{"password": "correct horse"}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = d.kube.CoreV1().ConfigMaps(name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = d.kube.CoreV1().Services(name).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = d.kube.AppsV1().Deployments(name).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](30), Selector: selector("web"), Template: template("web")}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = d.kube.AppsV1().StatefulSets(name).Create(ctx, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: ptr.To[int32](3), PodManagementPolicy: appsv1.ParallelPodManagement, Selector: selector("db"), Template: template("db"),
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}},
	}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	d.await("the pods", func(ctx context.Context) error {
		if n := len(d.pods(ctx, name)); n != 33 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
}

// pods returns the UIDs of the pods of a namespace by name.
func (d *drill) pods(ctx context.Context, namespace string) map[string]types.UID {
	uids := map[string]types.UID{}
	pods, err := d.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, pod := range pods.Items {
			uids[pod.Name] = pod.UID
		}
	}
	return uids
}

// deleteNamespace deletes a namespace and waits until it is gone. Pods without a node go at once.
func (d *drill) deleteNamespace(name string) {
	require.NoError(d.t, d.kube.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{}))
	d.await("the namespace to be gone", func(ctx context.Context) error {
		_, err := d.kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
}

// testNamespace deletes a namespace with workloads, and restores it with the pods' objects, and
// again without.
func testNamespace(t *testing.T, d *drill) {
	ctx := context.Background()
	d.createNamespace("shop")
	pods := d.pods(ctx, "shop")
	service, err := d.kube.CoreV1().Services("shop").Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	deployment, err := d.kube.AppsV1().Deployments("shop").Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	// What was deleted before is not part of the accident.
	_, err = d.kube.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "old"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, d.kube.CoreV1().ConfigMaps("shop").Delete(ctx, "old", metav1.DeleteOptions{}))
	d.deleteNamespace("shop")

	r := d.succeed("restore", "namespace/shop", "--include=pods", "--acting=leave-out", "--apply", "-o", "json")
	time.Sleep(10 * time.Second) // as long as the garbage collector and the controllers would need
	require.Equal(t, pods, d.pods(ctx, "shop"), "the same pods, no more")
	after, err := d.kube.CoreV1().Services("shop").Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, service.Spec.ClusterIPs, after.Spec.ClusterIPs)
	require.Equal(t, service.UID, after.UID)
	d.await("the cluster IP to be allocated", func(ctx context.Context) error {
		_, err := d.kube.NetworkingV1().IPAddresses().Get(ctx, after.Spec.ClusterIP, metav1.GetOptions{})
		return err
	})
	restored, err := d.kube.AppsV1().Deployments("shop").Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, deployment.UID, restored.UID)
	secret, err := d.kube.CoreV1().Secrets("shop").Get(ctx, "password", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "correct horse", string(secret.Data["password"]))
	_, err = d.kube.CoreV1().ConfigMaps("shop").Get(ctx, "old", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "what was deleted before stays deleted")
	d.figure("namespace with 3 workloads, claims, secrets, its pods' objects included", "<= 1 s, no extra pod, same cluster IPs",
		"%.2f s written, %.1f s in all; %d of 33 pods the same, no other, same cluster IP", secondsOf(t, r), r.took.Seconds(), len(pods))

	// By default pods are not restored: their controllers make new ones.
	d.deleteNamespace("shop")
	r = d.succeed("restore", "namespace/shop", "--apply", "-o", "json")
	d.await("new pods", func(ctx context.Context) error {
		if n := len(d.pods(ctx, "shop")); n != 33 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	for name, uid := range d.pods(ctx, "shop") {
		require.NotEqual(t, pods[name], uid)
	}
	d.figure("the same without the pods' objects (default)", "controllers make new ones", "%.2f s written; 33 new pods", secondsOf(t, r))
}

// testSnapshot restores from a file what etcd's own history no longer has.
func testSnapshot(t *testing.T, d *drill) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	before := d.state(prefix + "configmaps/default/kept")
	file := d.snapshot("before.db")
	require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, "kept", metav1.DeleteOptions{}))
	d.compact()
	d.fail("nothing in the history matches", "restore", "configmap/kept", "--apply")
	d.succeed("log", file)
	d.succeed("scan", file)
	r := d.succeed("restore", "configmap/kept", "--from="+file, "--apply", "-o", "json")
	require.Equal(t, before, d.state(prefix+"configmaps/default/kept"))
	d.figure("from a snapshot, the history compacted", "the same bytes", "bytes equal, %.2f s written", secondsOf(t, r))

	// After the accident the file has the deletion, and what was before.
	require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, "kept", metav1.DeleteOptions{}))
	file = d.snapshot("after.db")
	d.compact()
	d.succeed("restore", "cm/kept", "--from="+file, "--apply")
	require.Equal(t, before, d.state(prefix+"configmaps/default/kept"))
}

// snapshot saves one with etcd's own package.
func (d *drill) snapshot(name string) string {
	path := filepath.Join(d.dir, name)
	config := clientv3.Config{Endpoints: []string{d.etcd}, TLS: d.tls("root")}
	_, err := snapshot.SaveWithVersion(context.Background(), zap.NewNop(), config, path)
	require.NoError(d.t, err)
	return path
}

// snapshotOfAnotherCluster has the same keys and another UID of kube-system.
func (d *drill) snapshotOfAnotherCluster(name string) string {
	ctx := context.Background()
	key := prefix + "namespaces/kube-system"
	namespace := d.raw(key)
	system, err := d.kube.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	require.NoError(d.t, err)
	_, err = d.root.Put(ctx, key, strings.ReplaceAll(namespace, string(system.UID), "00000000-0000-4000-8000-000000000000"))
	require.NoError(d.t, err)
	file := d.snapshot(name)
	_, err = d.root.Put(ctx, key, namespace)
	require.NoError(d.t, err)
	return file
}

// compact removes the whole history.
func (d *drill) compact() {
	ctx := context.Background()
	response, err := d.root.Get(ctx, prefix, clientv3.WithCountOnly())
	require.NoError(d.t, err)
	_, err = d.root.Compact(ctx, response.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(d.t, err)
}

// testEncryption restores what is encrypted at rest, with the key that it was written with alone.
func testEncryption(t *testing.T, d *drill) {
	ctx := context.Background()
	key := prefix + "secrets/default/token"
	resource := d.createDefinition("gadgets", "Gadget")
	d.createGadget(resource)
	_, err := d.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "token"}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	before := d.state(key)
	require.Contains(t, d.raw(key), "k8s:enc:aesgcm:v1:key1:")
	require.Contains(t, d.raw(prefix+"example.com/gadgets/default/gadget"), "k8s:enc:secretbox:v1:key1:")
	require.NoError(t, d.kube.CoreV1().Secrets("default").Delete(ctx, "token", metav1.DeleteOptions{}))

	// The key is rotated: a new first one, the old one still there.
	other := filepath.Join(d.dir, "rotated.yaml")
	require.NoError(t, os.WriteFile(other, []byte(encryptionOf("key2", "key1")), 0o600))
	gone := filepath.Join(d.dir, "gone.yaml")
	require.NoError(t, os.WriteFile(gone, []byte(encryptionOf("key2")), 0o600))
	wrong := d.wrongEncryption()
	d.fail("aesgcm:v1:key1", "restore", "secret/token", "--apply", "--encryption-provider-config="+gone)
	d.fail("aesgcm:v1:key1", "restore", "secret/token", "--apply", "--encryption-provider-config="+wrong)
	d.fail("no encrypted value is readable", "scan", "--encryption-provider-config="+wrong)
	d.succeed("restore", "secret/token", "--apply", "--encryption-provider-config="+other)
	require.Equal(t, before, d.state(key))
	secret, err := d.kube.CoreV1().Secrets("default").Get(ctx, "token", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "b", string(secret.Data["a"]))

	below := prefix + "example.com/gadgets/"
	gadgets := d.state(below)
	require.NoError(t, d.dynamic.Resource(definitions).Delete(ctx, "gadgets.example.com", metav1.DeleteOptions{}))
	d.await("the definition to be gone", func(ctx context.Context) error {
		_, err := d.dynamic.Resource(definitions).Get(ctx, "gadgets.example.com", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
	d.succeed("restore", "crd/gadgets.example.com", "--apply")
	require.Equal(t, gadgets, d.state(below))
	require.Len(t, d.list(resource).Items, 1)
	d.figure("encryption at rest (aesgcm, secretbox), rotated key", "bytes equal; a missing or wrong key refused by name", "bytes equal; refused with aesgcm:v1:key1")
}

// wrongEncryption is a configuration with another key of the same name.
func (d *drill) wrongEncryption() string {
	path := filepath.Join(d.dir, "wrong.yaml")
	require.NoError(d.t, os.WriteFile(path, []byte(strings.ReplaceAll(encryptionOf("key1"), secretOf("key1"), secretOf("another"))), 0o600))
	return path
}

// asRoot are the flags of the certificate of etcd's user root, which saves snapshots.
func (d *drill) asRoot() []string {
	return []string{"--etcd-certfile=" + d.pki.Cert("root"), "--etcd-keyfile=" + d.pki.Key("root")}
}

// testSave saves a snapshot, verifies it, and refuses what is none of this cluster, or no longer
// what was saved.
func testSave(t *testing.T, d *drill) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "saved"}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	dir := filepath.Join(d.dir, "backups")
	d.fail("a snapshot needs a user with the role root", "save", dir)
	folders, err := filepath.Glob(filepath.Join(dir, "2*"))
	require.NoError(t, err)
	require.Empty(t, folders)

	// Killed in the middle, it leaves nothing under a snapshot's name that is not whole.
	command := exec.Command(filepath.Join(*output, "bin/guard-etcd"), append(d.asRoot(), "--apiserver-manifest="+d.manifest(), "save", dir)...)
	require.NoError(t, command.Start())
	d.await("the save to start", func(context.Context) error {
		saving, _ := filepath.Glob(filepath.Join(dir, ".saving-*"))
		saved, _ := filepath.Glob(filepath.Join(dir, "2*"))
		if len(saving)+len(saved) == 0 {
			return errors.New("no folder")
		}
		return nil
	})
	_ = command.Process.Kill()
	_ = command.Wait()
	d.awaitNextSecond()

	save := func() string {
		d.awaitNextSecond() // folders are named by seconds
		r := d.succeed(append(d.asRoot(), "save", dir, "-o", "json")...)
		var saved struct {
			Path      string
			Resources map[string]struct{ Objects int }
			Members   []struct{ Name string }
		}
		require.NoError(t, json.Unmarshal([]byte(r.out), &saved))
		require.Equal(t, "drill", saved.Members[0].Name)
		secrets, err := d.root.Get(ctx, prefix+"secrets/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		require.NoError(t, err)
		require.EqualValues(t, secrets.Count, saved.Resources["secrets"].Objects)
		return saved.Path
	}
	path := save()
	leftovers, err := filepath.Glob(filepath.Join(dir, ".saving-*"))
	require.NoError(t, err)
	require.Empty(t, leftovers)
	r := d.succeed("verify", path)
	require.Contains(t, r.out, "every object decodes, and it is what was saved")
	require.Contains(t, r.out, "aesgcm:v1:key1")
	d.figure("save and verify", "restored with etcd's own package, every object decoded", "so, in %.1f s", r.took.Seconds())

	// What is not as it was saved.
	content, err := os.ReadFile(filepath.Join(path, "snapshot.db"))
	require.NoError(t, err)
	truncated := filepath.Join(d.dir, "cut.db")
	require.NoError(t, os.WriteFile(truncated, content[:len(content)/2+100], 0o600))
	d.fail("truncated", "verify", truncated)
	exchanged := save()
	require.NoError(t, os.WriteFile(filepath.Join(exchanged, "snapshot.db"), content, 0o600))
	d.fail("its SHA-256 is not that of the manifest", "verify", exchanged)
	d.fail("no encrypted value is readable", "verify", path, "--encryption-provider-config="+d.wrongEncryption())
	other := d.snapshotOfAnotherCluster("elsewhere.db")
	d.fail("the snapshot is of another cluster", "verify", other)
	d.succeed("verify", other, "--offline")

	// Damage is saved and named: it is the best that there is.
	key := prefix + "configmaps/default/spoilt"
	_, err = d.root.Put(ctx, key, "nothing that decodes")
	require.NoError(t, err)
	d.awaitNextSecond()
	d.fail("with damaged keys: 1", append(d.asRoot(), "save", dir)...)
	_, err = d.root.Delete(ctx, key)
	require.NoError(t, err)
	paths, err := filepath.Glob(filepath.Join(dir, "2*"))
	require.NoError(t, err)
	d.fail("damaged keys: 1", "verify", paths[len(paths)-1])

	// Its history restores.
	require.NoError(t, d.kube.CoreV1().Secrets("default").Delete(ctx, "saved", metav1.DeleteOptions{}))
	path = save()
	d.compact()
	d.succeed("restore", "secret/saved", "--apply", "--from="+filepath.Join(path, "snapshot.db"))
	d.awaitNextSecond()
	r = d.succeed(append(d.asRoot(), "save", dir, "--keep=1")...)
	require.Contains(t, r.out, "Removed "+path)
	require.NoDirExists(t, path)
	d.figure("verify: truncated, exchanged, another cluster, wrong key, damaged key", "refused by name, nothing written", "each by name, nothing written")
}

// awaitNextSecond waits for a name that no snapshot has.
func (d *drill) awaitNextSecond() {
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
}

// testChecks runs preflight and access, which write nothing.
func testChecks(t *testing.T, d *drill) {
	dir := filepath.Join(d.dir, "checked")
	d.succeed(append(d.asRoot(), "save", dir)...)
	before := stable(d.state(prefix))
	results := func(r result) map[string][]string {
		var report struct {
			Checks []struct{ Name, Result string }
		}
		require.NoError(t, json.Unmarshal([]byte(r.out), &report))
		found := map[string][]string{}
		for _, c := range report.Checks {
			found[c.Name] = append(found[c.Name], c.Result)
		}
		return found
	}
	preflight := results(d.succeed("preflight", "--snapshot-dir="+dir, "-o", "json"))
	for _, name := range []string{"etcd", "encryption", "keys", "API server", "snapshots"} {
		require.Equal(t, []string{"OK"}, preflight[name], name)
	}
	require.Len(t, preflight["history"], 1)
	d.fail("no encrypted value is readable", "preflight", "--snapshot-dir="+dir, "--encryption-provider-config="+d.wrongEncryption())
	r := d.fail("does not respond", "preflight", "--snapshot-dir="+dir, "--etcd-servers=https://127.0.0.1:1")
	require.Less(t, r.took, 15*time.Second, "a member that does not respond is waited for once")

	access := results(d.succeed(append(d.asRoot(), "access", "-o", "json", "--other-certificate="+d.pki.Cert("stranger"))...))
	for name, want := range map[string]string{
		"etcd": "OK", "without a certificate": "OK", "other certificates": "OK", "authentication": "OK", "role root": "OK", "metrics": "Unknown",
	} {
		require.Equal(t, []string{want}, access[name], name)
	}
	require.Equal(t, []string{"OK", "OK"}, access["files"])
	// The API server's certificate is none of root's.
	limited := results(d.succeed("access", "-o", "json"))
	require.Equal(t, []string{"OK"}, limited["authentication"])
	require.Equal(t, []string{"Unknown"}, limited["role root"])
	d.fail("reader.crt is accepted", "access", "--other-certificate="+d.pki.Cert("reader"))
	require.NoError(t, os.Chmod(d.encryption(), 0o644))
	d.fail("others than its owner can read it", "access")
	require.NoError(t, os.Chmod(d.encryption(), 0o600))
	require.Equal(t, before, stable(d.state(prefix)), "checks write nothing")
	d.figure("preflight, access", "what is missing or open, by name; nothing written", "so")
}

func (d *drill) createGadget(resource schema.GroupVersionResource) {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Gadget"}}
	o.SetName("gadget")
	_, err := d.dynamic.Resource(resource).Namespace("default").Create(context.Background(), o, metav1.CreateOptions{})
	require.NoError(d.t, err)
}

func (d *drill) raw(key string) string {
	response, err := d.root.Get(context.Background(), key)
	require.NoError(d.t, err)
	require.Len(d.t, response.Kvs, 1, key)
	return string(response.Kvs[0].Value)
}

// testDamage changes one byte each of a built-in object, a custom resource and an encrypted Secret.
func testDamage(t *testing.T, d *drill) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "victim"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	for _, accident := range []struct {
		what, key string
		damage    func([]byte) []byte
		list, get func() error
	}{
		// The length of the field: what follows is read as something else.
		{"protobuf", prefix + "configmaps/default/victim", func(value []byte) []byte { value[len("k8s\x00")+1] = 0x7f; return value }, func() error {
			_, err := d.kube.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
			return err
		}, func() error {
			_, err := d.kube.CoreV1().ConfigMaps("default").Get(ctx, "victim", metav1.GetOptions{})
			return err
		}},
		{"JSON", prefix + definitionKey + "gadgets.example.com", func(value []byte) []byte { value[len(value)/2] = 0; return value }, func() error {
			_, err := d.dynamic.Resource(definitions).List(ctx, metav1.ListOptions{})
			return err
		}, func() error {
			_, err := d.dynamic.Resource(definitions).Get(ctx, "gadgets.example.com", metav1.GetOptions{})
			return err
		}},
		{"encrypted", prefix + "secrets/default/token", func(value []byte) []byte { value[len(value)-1] ^= 1; return value }, func() error {
			_, err := d.kube.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
			return err
		}, func() error {
			_, err := d.kube.CoreV1().Secrets("default").Get(ctx, "token", metav1.GetOptions{})
			return err
		}},
	} {
		good := d.raw(accident.key)
		_, err := d.root.Put(ctx, accident.key, string(accident.damage([]byte(good))))
		require.NoError(t, err)
		d.await(accident.what+": lists fail", func(context.Context) error {
			if accident.list() == nil {
				return errors.New("a list succeeds")
			}
			return nil
		})

		r := d.fail(accident.key, "scan")
		require.Contains(t, r.out, "Damaged: 1.")
		d.fail("Nothing is written", "scan", "--revert")
		d.succeed("scan", "--revert", "--apply")
		start := time.Now()
		require.NoError(t, accident.get(), "a read of the object goes to etcd")
		got := time.Since(start)
		d.await("the list", func(context.Context) error { return accident.list() })
		// A list first waits three seconds for the API server's cache, which retries with a back-off
		// (blockTimeout in k8s.io/apiserver/pkg/storage/cacher/watch_cache.go), and then reads etcd.
		d.figure("damaged key: "+accident.what, "scan names exactly it; list <= 1 s after --revert, no restart", "named; GET after %.1f s, list after %.1f s", got.Seconds(), time.Since(start).Seconds())
	}
	d.succeed("scan")

	// With the history gone, a snapshot has it.
	file := d.snapshot("good.db")
	key := prefix + "configmaps/default/victim"
	good := d.raw(key)
	_, err = d.root.Put(ctx, key, "nothing that decodes")
	require.NoError(t, err)
	d.compact()
	d.fail("no longer in the history", "scan", "--revert", "--apply")
	d.succeed("scan", "--revert", "--apply", "--from="+file)
	require.Equal(t, good, d.raw(key))

	// Another object's bytes decode, and are damage all the same.
	_, err = d.root.Put(ctx, key, d.raw(prefix+"configmaps/default/kube-root-ca.crt"))
	require.NoError(t, err)
	d.fail("the key holds another object", "scan")
	d.succeed("scan", "--revert", "--apply")
	require.Equal(t, good, d.raw(key))
	testInterruptedRepair(t, d)
}

// testInterruptedRepair kills scan --revert after its first transactions, and runs it again.
func testInterruptedRepair(t *testing.T, d *drill) {
	const damaged = 40
	below := prefix + "configmaps/default/repaired-"
	for i := range damaged {
		_, err := d.kube.CoreV1().ConfigMaps("default").Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("repaired-%02d", i)}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	before := d.state(below)
	require.Len(t, before, damaged)
	for key := range before {
		_, err := d.root.Put(context.Background(), key, "nothing that decodes")
		require.NoError(t, err)
	}
	command := exec.Command(filepath.Join(*output, "bin/guard-etcd"), "--apiserver-manifest="+d.manifest(), "--kubeconfig="+d.kubeconfig(),
		"scan", "--revert", "--apply", "--journal-dir="+d.journal)
	earlier := len(d.journals())
	require.NoError(t, command.Start())
	killed := d.killAt(command, earlier, "written")
	_ = command.Wait()
	require.True(t, killed, "killed before it ended")
	left := d.fail("Nothing is written", "scan", "--revert")
	require.NotContains(t, left.out, fmt.Sprintf("Damaged: %d.", damaged), "a part is written")
	again := d.succeed("scan", "--revert", "--apply")
	require.Contains(t, again.errOut, "an earlier restore did not finish")
	require.Equal(t, before, d.state(below))
	require.NotContains(t, d.succeed("scan", "--revert", "--apply").errOut, "did not finish")
	d.figure("scan --revert interrupted (SIGKILL), run again", "completes, a journal says so", "%d of %d as before", damaged, damaged)
}

// testRefusals is what is refused by name.
func testRefusals(t *testing.T, d *drill) {
	ctx := context.Background()
	create := func(name string, owners ...metav1.OwnerReference) types.UID {
		o, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: owners}}, metav1.CreateOptions{})
		require.NoError(t, err)
		return o.UID
	}
	remove := func(name string) {
		orphan := metav1.DeletePropagationBackground
		require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &orphan}))
	}
	// Created again with another UID.
	uid := create("again")
	remove("again")
	other := create("again")
	d.fail("another object of that name was created, with UID "+string(other), "restore", "cm/again", "--apply")
	d.succeed("restore", "cm/again", "--apply", "--replace")
	o, err := d.kube.CoreV1().ConfigMaps("default").Get(ctx, "again", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, uid, o.UID)

	// The naive restore: an object whose owner is gone. The garbage collector would delete it.
	owner := create("owner")
	create("owned", metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner})
	remove("owner")
	d.await("the garbage collector", func(ctx context.Context) error {
		_, err := d.kube.CoreV1().ConfigMaps("default").Get(ctx, "owned", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("owned is there: %w", err)
	})
	d.fail("its owner is neither there nor restored with it: ConfigMap owner", "restore", "cm/owned", "--apply")
	// With its owner it comes back, owner first, and stays.
	d.succeed("restore", "cm/owner", "--apply")
	time.Sleep(10 * time.Second)
	o, err = d.kube.CoreV1().ConfigMaps("default").Get(ctx, "owned", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, owner, o.OwnerReferences[0].UID)
	d.figure("owner and owned, the garbage collector running", "refused without the owner; 0 deleted with it", "refused by name; 0 of 2 deleted")

	// A custom resource without its definition, an object without its namespace.
	d.fail("nothing in the history matches", "restore", "cm/never-there", "--apply")
	d.fail("is not KIND/NAME", "restore", "nonsense")
	d.fail("--key: /elsewhere is not below /registry/", "restore", "--key=/elsewhere")
	d.fail("in the future", "restore", "cm/again", "--revision=999999999")

	// What acts is refused until a choice is made.
	job := prefix + "secrets/default/robot"
	_, err = d.kube.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = d.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "robot", Annotations: map[string]string{corev1.ServiceAccountNameKey: "robot"}}, Type: corev1.SecretTypeServiceAccountToken}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, d.kube.CoreV1().Secrets("default").Delete(ctx, "robot", metav1.DeleteOptions{}))
	d.fail("its token is valid again", "restore", "secret/robot", "--apply")
	d.succeed("restore", "secret/robot", "--apply", "--acting=leave-out")
	require.Empty(t, d.state(job))
	d.succeed("restore", "secret/robot", "--apply", "--acting=restore")
	require.Len(t, d.state(job), 1)

	// A Service whose cluster IP another one has.
	service := func(name, ip string) {
		_, err := d.kube.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	service("first", "10.96.7.7")
	require.NoError(t, d.kube.CoreV1().Services("default").Delete(ctx, "first", metav1.DeleteOptions{}))
	service("second", "10.96.7.7")
	d.fail("its cluster IP 10.96.7.7 is in use by Service default/second", "restore", "service/first", "--apply")
}

// testInterruption kills a restore after each transaction, and runs it again.
func testInterruption(t *testing.T, d *drill) {
	ctx := context.Background()
	resource := d.createDefinition("gizmos", "Gizmo")
	d.createInstances(resource, "Gizmo", 450, 1)
	d.awaitGarbageCollector(resource, "Gizmo")
	folder := prefix + "example.com/gizmos/"
	before := d.state(folder)
	d.deleteDefinition(resource, "Gizmo", 1)
	kills, killed := 0, false
	for left := d.planned("crd/gizmos.example.com"); left > 0; left = d.planned("crd/gizmos.example.com") {
		// The journal says when a transaction is written: kill right after it, or while it is.
		event := []string{"written", "writing"}[kills%2]
		journals := d.journals()
		command := exec.Command(filepath.Join(*output, "bin/guard-etcd"), "--apiserver-manifest="+d.manifest(), "--kubeconfig="+d.kubeconfig(),
			"restore", "crd/gizmos.example.com", "--apply", "--expect="+fmt.Sprint(left), "--journal-dir="+d.journal)
		require.NoError(t, command.Start())
		killed = d.killAt(command, len(journals), event)
		_ = command.Wait()
		if !killed {
			break
		}
		kills++
		if len(d.state(prefix+definitionKey+"gizmos.example.com")) == 0 {
			// The definition comes last: nobody sees a half.
			_, err := d.dynamic.Resource(resource).Namespace("default").List(ctx, metav1.ListOptions{})
			require.True(t, apierrors.IsNotFound(err), "%v", err)
		}
	}
	require.GreaterOrEqual(t, kills, 4, "450 objects are five transactions at least")
	first := d.succeed("restore", "crd/gizmos.example.com", "--apply")
	require.Contains(t, first.out, "Nothing to write")
	require.Equal(t, killed, strings.Contains(first.errOut, "an earlier restore did not finish"), first.errOut)
	again := d.succeed("restore", "crd/gizmos.example.com", "--apply")
	require.Contains(t, again.out, "Nothing to write")
	require.NotContains(t, again.errOut, "did not finish", "the run before recorded that nothing is left to write")
	require.Equal(t, before, d.state(folder))
	require.Len(t, d.list(resource).Items, 450)
	d.figure("interrupted (SIGKILL) after each transaction, run again", "completes, nothing twice", "%d kills; bytes equal, 450 of 450", kills)
}

// planned is how many objects a restore would write.
func (d *drill) planned(selector string) int {
	r := d.succeed("restore", selector, "-o", "json")
	var plan struct {
		Items []struct {
			Action string `json:"action"`
		} `json:"items"`
	}
	require.NoError(d.t, json.Unmarshal([]byte(r.out), &plan))
	n := 0
	for _, item := range plan.Items {
		if item.Action == "Create" {
			n++
		}
	}
	return n
}

// journals returns the files of the journal's folder, the oldest first.
func (d *drill) journals() []string {
	paths, err := filepath.Glob(filepath.Join(d.journal, "*.jsonl"))
	require.NoError(d.t, err)
	return paths
}

// killAt kills a command once its journal, the one after the earlier ones, has a record of an
// event; false: it ended.
func (d *drill) killAt(command *exec.Cmd, earlier int, event string) bool {
	for start := time.Now(); time.Since(start) < startTimeout; time.Sleep(time.Millisecond) {
		paths := d.journals()
		if len(paths) == earlier {
			continue
		}
		content, err := os.ReadFile(paths[len(paths)-1])
		require.NoError(d.t, err)
		if bytes.Contains(content, []byte(`"finished"`)) {
			return false
		}
		if bytes.Contains(content, []byte(`"`+event+`"`)) {
			return command.Process.Signal(syscall.SIGKILL) == nil
		}
	}
	require.FailNow(d.t, "the restore neither wrote nor ended")
	return false
}

// testBadInput is what an administrator can do wrong, or the store.
func testBadInput(t *testing.T, d *drill) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "input"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, "input", metav1.DeleteOptions{}))
	good := d.snapshot("whole.db")
	content, err := os.ReadFile(good)
	require.NoError(t, err)
	file := func(name string, content []byte) string {
		path := filepath.Join(d.dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	// Files.
	truncated := file("truncated.db", content[:len(content)/2+100])
	d.fail("truncated", "log", truncated)
	d.fail("not a complete snapshot", "restore", "cm/input", "--apply", "--from="+truncated)
	d.fail("not a complete snapshot", "scan", truncated, "--skip-hash-check")
	flipped := slices.Clone(content)
	flipped[len(flipped)/2] ^= 1
	d.fail("its checksum does not match its content", "scan", file("flipped.db", flipped))
	d.fail("not a complete snapshot", "log", file("text.db", []byte("this is no snapshot")))
	d.fail("not a complete snapshot", "log", file("empty.db", nil), "--skip-hash-check")
	d.fail("no such file", "log", filepath.Join(d.dir, "absent.db"))
	// The prefix.
	d.fail("under /registry/: --etcd-prefix", "restore", "--key=/elsewhere/configmaps/default/input", "--from="+good, "--etcd-prefix=/elsewhere",
		"--etcd-certfile="+d.pki.Cert("root"), "--etcd-keyfile="+d.pki.Key("root"))
	d.fail("--etcd-prefix", "scan", good, "--etcd-prefix=/elsewhere")
	other := d.snapshotOfAnotherCluster("other.db")
	d.fail("the snapshot is of another cluster", "restore", "cm/input", "--apply", "--from="+other)
	// Certificates and permissions.
	d.fail("permission", "log", "--etcd-certfile="+d.pki.Cert("stranger"), "--etcd-keyfile="+d.pki.Key("stranger"))
	d.fail("does not permit", "restore", "cm/input", "--apply", "--etcd-certfile="+d.pki.Cert("reader"), "--etcd-keyfile="+d.pki.Key("reader"))
	d.succeed("log", "--etcd-certfile="+d.pki.Cert("reader"), "--etcd-keyfile="+d.pki.Key("reader"))
	d.fail("--etcd-cafile", "log", "--etcd-cafile="+filepath.Join(d.dir, "absent.crt"))
	d.fail("--apiserver-manifest", "log", "--apiserver-manifest="+filepath.Join(d.dir, "absent.yaml"))
	d.fail("nothing is written without an API server", "restore", "cm/input", "--apply", "--kubeconfig="+filepath.Join(d.dir, "absent.conf"))
	// A journal that cannot be written.
	d.fail("--journal-dir", "restore", "cm/input", "--apply", "--journal-dir="+good)
	// A store that takes no writes: it is out of space.
	alarm := func(action pb.AlarmRequest_AlarmAction) {
		status, err := d.root.Status(ctx, d.etcd)
		require.NoError(t, err)
		_, err = pb.NewMaintenanceClient(d.root.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: status.Header.MemberId, Alarm: pb.AlarmType_NOSPACE})
		require.NoError(t, err)
	}
	alarm(pb.AlarmRequest_ACTIVATE)
	d.fail("database space exceeded", "restore", "cm/input", "--apply")
	alarm(pb.AlarmRequest_DEACTIVATE)
	d.succeed("restore", "cm/input", "--apply")
	d.figure("bad input: truncated, flipped, no snapshot, wrong prefix, wrong certificate, read-only role, etcd out of space, no API, no journal", "a clear error, nothing written", "each by name, nothing written")
}

// testUnreachable: a wrong address is named once the wait for an election is over.
func testUnreachable(_ *testing.T, d *drill) {
	d.fail("does etcd listen there", "log", "--etcd-servers=https://127.0.0.1:1")
}

// testCompaction: what the history has lost is said to be lost.
func testCompaction(t *testing.T, d *drill) {
	ctx := context.Background()
	_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late", Finalizers: []string{"example.com/drill"}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, "late", metav1.DeleteOptions{}))
	d.fail("nothing in the history matches", "restore", "cm/late", "--apply")
	d.compact()
	// The version without deletion timestamp is compacted now; the deletion is not.
	_, err = d.kube.CoreV1().ConfigMaps("default").Patch(ctx, "late", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{})
	require.NoError(t, err)
	d.fail("its last version that was not terminating is older than the history", "restore", "cm/late", "--apply")
	d.fail("no longer in etcd's history", "restore", "cm/late", "--revision=5")

	// Between the first read and the next ones: what is missing is named, not an error.
	live, err := history.OpenLive(ctx, d.root, prefix)
	require.NoError(t, err)
	opened := live.Bounds()
	_, err = d.root.Put(ctx, prefix+"configmaps/default/none", "")
	require.NoError(t, err)
	_, err = d.root.Delete(ctx, prefix+"configmaps/default/none")
	require.NoError(t, err)
	d.compact()
	require.NoError(t, live.Deletions(ctx, prefix, func(history.Deletion) error { return nil }))
	require.Equal(t, history.Bounds{Oldest: opened.Oldest + 1, Newest: live.Bounds().Oldest}, live.Gap)
	_, err = live.Get(ctx, prefix+"configmaps/default/kube-root-ca.crt", opened.Newest)
	require.ErrorIs(t, err, history.ErrCompacted)
}

// testLog shows who deleted what.
func testLog(t *testing.T, d *drill) {
	ctx := context.Background()
	for i := range 3 {
		name := fmt.Sprintf("logged-%d", i)
		_, err := d.kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, d.kube.CoreV1().ConfigMaps("default").Delete(ctx, name, metav1.DeleteOptions{}))
	}
	r := d.succeed("log", "--audit-log="+filepath.Join(d.dir, "audit.log"), "-o", "json")
	var log struct {
		Groups []struct {
			Kind, Namespace, Example string
			Objects, Unreadable      int
			First                    *time.Time
			By                       []string
		}
		Since *time.Time
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &log))
	found := false
	for _, g := range log.Groups {
		if g.Kind == "ConfigMap" && g.Namespace == "default" {
			found = true
			require.Equal(t, 3, g.Objects)
			require.Zero(t, g.Unreadable)
			require.Equal(t, []string{"admin"}, g.By)
			require.NotNil(t, g.First)
			require.WithinDuration(t, time.Now(), *g.First, time.Minute)
		}
	}
	require.True(t, found, r.out)
	objects := d.succeed("log", "--objects", "-n", "default")
	require.Equal(t, 3, strings.Count(objects.out, "logged-"))
	file := d.snapshot("log.db")
	fromFile := d.succeed("log", file, "--objects", "-n", "default")
	require.Equal(t, 3, strings.Count(fromFile.out, "logged-"))
	d.figure("log, live and of a file", "each deletion, who and when", "3 of 3, by admin; %.1f s", r.took.Seconds())
}
