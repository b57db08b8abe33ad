package dataprotection

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/framework"
)

// testRandomDeletions deletes 1,000 objects in all ways at random and restores what the log shows:
// nothing but revisions may differ from before.
func testRandomDeletions(t *testing.T, d *drill) {
	const count = 1000
	ctx := context.Background()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	names := d.createRandomPopulation(count)
	before := stable(d.state(prefix))
	start := d.revision()

	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	policies := []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground}
	batches := sets.New[string]()
	for i, object := range names {
		switch way := random.IntN(10); {
		case way < 4:
			// It may be gone: its owner or its batch went before.
			require.NoError(t, d.deleteNamed(ctx, object, metav1.DeleteOptions{PropagationPolicy: &policies[i%2]}))
		case way < 7:
			_, err := d.root.Delete(ctx, prefix+object)
			require.NoError(t, err)
		default:
			batches.Insert(fmt.Sprint(random.IntN(20)))
		}
	}
	for batch := range batches {
		for _, namespace := range randomNamespaces {
			selector := metav1.ListOptions{LabelSelector: "drill=random,batch=" + batch}
			require.NoError(t, d.kube.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, selector))
			require.NoError(t, d.kube.CoreV1().Secrets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, selector))
		}
	}
	// What is left goes past the API, so that all are deleted.
	for _, object := range names {
		_, err := d.root.Delete(ctx, prefix+object)
		require.NoError(t, err)
	}
	d.await("the garbage collector to be done", func(context.Context) error {
		for _, object := range names {
			if len(d.state(prefix+object)) > 0 {
				return fmt.Errorf("%s is there", object)
			}
		}
		return nil
	})

	log := d.succeed("log", "-o", "json")
	var content struct {
		Items []struct {
			Key      string
			Revision int64
		}
	}
	require.NoError(t, json.Unmarshal([]byte(log.out), &content))
	arguments := []string{"restore", "--apply", "--expect=" + fmt.Sprint(count), "-o", "json"}
	keys := sets.New[string]()
	for _, item := range content.Items {
		if item.Revision > start && !keys.Has(item.Key) {
			keys.Insert(item.Key)
			arguments = append(arguments, "--key="+item.Key)
		}
	}
	require.Len(t, keys, count, "the log shows each")
	// As docs/data-protection.md says: its garbage collector has not seen all of these deletions yet.
	d.controllerProcess.stop(syscall.SIGTERM)
	r := d.succeed(arguments...)
	d.restartControllers()
	time.Sleep(10 * time.Second) // as long as the garbage collector would need
	require.Equal(t, before, stable(d.state(prefix)))
	d.figure("1,000 random deletions (API, deletecollection, etcd), undone", "state equal to before but for revisions", "equal; %.1f s written, %.1f s in all", secondsOf(t, r), r.took.Seconds())
}

var randomNamespaces = []string{"random-0", "random-1", "random-2"}

// createRandomPopulation creates ConfigMaps and encrypted Secrets, every fifth owned by the one
// before, and returns their keys without the prefix.
func (d *drill) createRandomPopulation(count int) []string {
	ctx := context.Background()
	for _, namespace := range randomNamespaces {
		_, err := d.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
		require.NoError(d.t, err)
		// What the controllers make for a new namespace is there before the state is taken.
		d.await("the namespace to be complete", func(ctx context.Context) error {
			_, err := d.kube.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			_, accountErr := d.kube.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
			return errors.Join(err, accountErr)
		})
	}
	keys, errs := make([]string, count), make([]error, count)
	workqueue.ParallelizeUntil(ctx, 8, count/5, func(group int) {
		var owner *metav1.OwnerReference
		for i := group * 5; i < (group+1)*5; i++ {
			o := metav1.ObjectMeta{Name: fmt.Sprintf("object-%04d", i), Namespace: randomNamespaces[group%3], Labels: map[string]string{"drill": "random", "batch": fmt.Sprint(i % 20)}}
			if owner != nil && i%5 == 4 {
				o.OwnerReferences = []metav1.OwnerReference{*owner}
			}
			if i%3 == 0 {
				keys[i] = "secrets/" + o.Namespace + "/" + o.Name
				created, err := d.kube.CoreV1().Secrets(o.Namespace).Create(ctx, &corev1.Secret{ObjectMeta: o, StringData: map[string]string{"n": fmt.Sprint(i)}}, metav1.CreateOptions{})
				if errs[i] = err; err == nil {
					owner = &metav1.OwnerReference{APIVersion: "v1", Kind: "Secret", Name: o.Name, UID: created.UID}
				}
				continue
			}
			keys[i] = "configmaps/" + o.Namespace + "/" + o.Name
			created, err := d.kube.CoreV1().ConfigMaps(o.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: o, Data: map[string]string{"n": fmt.Sprint(i)}}, metav1.CreateOptions{})
			if errs[i] = err; err == nil {
				owner = &metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: created.UID}
			}
		}
	})
	require.NoError(d.t, errors.Join(errs...))
	return keys
}

// deleteNamed deletes the object of a key, unless it is gone.
func (d *drill) deleteNamed(ctx context.Context, key string, o metav1.DeleteOptions) error {
	parts := strings.Split(key, "/")
	err := d.kube.CoreV1().RESTClient().Delete().Namespace(parts[1]).Resource(parts[0]).Name(parts[2]).Body(&o).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (d *drill) revision() int64 {
	response, err := d.root.Get(context.Background(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(d.t, err)
	return response.Header.Revision
}

// testWholeRestore replaces etcd by a snapshot with preflight's command. The API server runs on,
// and must forget what the snapshot has not. It comes last: what the other cases made is gone.
func testWholeRestore(t *testing.T, d *drill) {
	ctx := context.Background()
	configMaps := d.kube.CoreV1().ConfigMaps("default")
	create := func(name string) {
		_, err := configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	create("in-the-snapshot")
	create("changed")
	d.createPodOn("stays", "stock", nil)
	file := d.snapshot("whole-restore.db")
	require.NoError(t, configMaps.Delete(ctx, "in-the-snapshot", metav1.DeleteOptions{}))
	_, err := configMaps.Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "changed"}, Data: map[string]string{"a": "b"}}, metav1.UpdateOptions{})
	require.NoError(t, err)
	create("ghost")
	_, err = d.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ghost"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	for name, version := range map[string]string{"stock": "v1.37.2", "guarded": "v1.37.2+guard.0.1.0"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: version}}}
		_, err := d.kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		require.NoError(t, err)
		d.createPodOn("plain-on-"+name, name, nil)
		d.createPodOn("protected-on-"+name, name, map[string]string{"kubelet-guard.io/explicit-deletion": "required"})
	}

	dataDir := filepath.Join(d.dir, "etcd.restored")
	text := d.succeed(append(d.asRoot(), "preflight", file, "--data-dir="+dataDir)...)
	require.Contains(t, text.out, "Running pods that lose their object: 4. Killed: 3; held by guarded nodes: 1.")
	r := d.succeed(append(d.asRoot(), "preflight", file, "--data-dir="+dataDir, "-o", "json")...)
	var report struct {
		Resources []struct {
			Resource              string
			ComeBack, Lost, Older int
		}
		Pods []struct {
			Name string
			Held bool
		}
		LiveRevision int64
		Commands     []string
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &report))
	require.Len(t, report.Pods, 4)
	for _, pod := range report.Pods {
		require.Equal(t, pod.Name == "protected-on-guarded", pod.Held, pod.Name)
	}
	found := false
	for _, resource := range report.Resources {
		if resource.Resource == "configmaps" {
			found = true
			// The root CA of the namespace ghost is lost with it.
			require.Equal(t, [2]int{1, 1}, [2]int{resource.ComeBack, resource.Older})
			require.GreaterOrEqual(t, resource.Lost, 1)
		}
	}
	require.True(t, found, r.out)
	require.Len(t, report.Commands, 1)
	require.Contains(t, report.Commands[0], "--mark-compacted")

	d.etcdProcess.stop(syscall.SIGTERM)
	words := strings.Fields(report.Commands[0])
	require.Equal(t, "etcdutl", words[0])
	restored, err := exec.Command(filepath.Join(*output, "node/bin", words[0]), words[1:]...).CombinedOutput()
	require.NoError(t, err, string(restored))
	d.startEtcdIn(*output, dataDir)
	start := time.Now()
	require.Greater(t, d.revision(), report.LiveRevision)
	ghosts := func(ctx context.Context) error {
		for _, options := range []metav1.ListOptions{{}, {ResourceVersion: "0"}} {
			namespaces, err := d.kube.CoreV1().Namespaces().List(ctx, options)
			if err != nil {
				return err
			}
			for _, namespace := range namespaces.Items {
				if namespace.Name == "ghost" {
					return fmt.Errorf("the namespace is in the list (%v)", options)
				}
			}
			list, err := configMaps.List(ctx, options)
			if err != nil {
				return err
			}
			names := sets.New[string]()
			for _, o := range list.Items {
				names.Insert(o.Name)
			}
			if names.Has("ghost") || !names.HasAll("in-the-snapshot", "changed") {
				return fmt.Errorf("the list has %v (%v)", sets.List(names), options)
			}
		}
		if _, err := configMaps.Get(ctx, "ghost", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("GET of what was not in the snapshot: %w", err)
		}
		_, err := configMaps.Get(ctx, "in-the-snapshot", metav1.GetOptions{})
		return err
	}
	d.await("no ghost", ghosts)
	took := time.Since(start)
	for range 10 {
		time.Sleep(time.Second)
		require.NoError(t, ghosts(ctx), "it stays so")
	}
	d.figure("whole restore by preflight's command, API server running", "no ghost in list, cache or GET after 5 s", "none after %.1f s, and for 10 s more", took.Seconds())
}

// testStart lets a real API server list a snapshot, its own and one of an older minor.
func testStart(t *testing.T, d *drill) {
	ctx := context.Background()
	file := d.snapshot("start.db")
	start := func(version string) []string {
		return append(d.asRoot(), "verify", file, "--start", "--etcd="+filepath.Join(*output, "node/bin/etcd"), "--kube-apiserver="+filepath.Join(*output, version, "kube-apiserver"))
	}
	r := d.succeed(start(framework.KubeVersion)...)
	require.Contains(t, r.out, "lists all of it")
	d.figure("verify --start: a real API server lists the snapshot, with authentication and encryption", "all of it", "all of it, in %.1f s", r.took.Seconds())
	d.fail("--kube-apiserver: --start needs the program itself", start("v0.0.0")...)

	// A kind that no API server serves by default, as an object of a newer minor.
	key := prefix + "internal.apiserver.k8s.io/storageversions/drill"
	_, err := d.root.Put(ctx, key, `{"apiVersion":"internal.apiserver.k8s.io/v1alpha1","kind":"StorageVersion","metadata":{"name":"drill","uid":"00000000-0000-4000-8000-000000000001"}}`)
	require.NoError(t, err)
	// A version that this program does not know either.
	future := prefix + "deployments/default/future"
	_, err = d.root.Put(ctx, future, `{"apiVersion":"apps/v9","kind":"Deployment","metadata":{"name":"future","namespace":"default","uid":"00000000-0000-4000-8000-000000000002"}}`)
	require.NoError(t, err)
	file = d.snapshot("unserved.db")
	for _, key := range []string{key, future} {
		_, err = d.root.Delete(ctx, key)
		require.NoError(t, err)
	}
	d.fail("does not serve its kind (internal.apiserver.k8s.io/v1alpha1 StorageVersion)", "restore", "--key="+key, "--apply")
	d.fail("is of no kind that this program knows, and of no definition", "restore", "--key="+future, "--apply")
	r = d.guard(start(framework.KubeVersion)...)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.errOut, "storageversions.internal.apiserver.k8s.io: kube-apiserver "+framework.KubeVersion+" does not serve it; objects: 1")
	require.Contains(t, r.errOut, "deployments.apps: its list fails")
	d.figure("API versions and kinds that the API server does not serve", "refused by name, nothing written", "so, by restore and by verify --start")

	if *older == "" {
		t.Log("without -older no older API server is tried")
		return
	}
	file = filepath.Join(d.dir, "start.db")
	// An older API server removes the APIServices of group versions that it does not have, and that
	// shows; all else it lists.
	r = d.guard(start(*older)...)
	if r.code != 0 {
		require.Contains(t, r.errOut, "what kube-apiserver "+*older+" does not serve of it: apiservices.apiregistration.k8s.io: the list has ")
		require.NotContains(t, r.errOut, "; ", "nothing else is missing")
	} else {
		require.Contains(t, r.out, "kube-apiserver "+*older+" lists all of it")
	}
	d.figure("the snapshot of "+framework.KubeVersion+" in an API server "+*older, "lists all, or names what not", "so, in %.1f s", r.took.Seconds())
}

// createPodOn creates a pod as one that runs on a node. None does.
func (d *drill) createPodOn(name, node string, labels map[string]string) {
	ctx := context.Background()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/main"}}}}
	_, err := d.kube.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	require.NoError(d.t, err)
}
