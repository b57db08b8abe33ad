package dataprotection

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

var routine = flag.String("routine", "manifests/data-protection/cronjob.yaml", "The CronJob that saves etcd")

var recipePage = flag.String("recipe", "docs/data-protection.md", "The page with the access recipe")

// recipeHeading is that of the recipe.
const recipeHeading = "### Access recipe\n"

// TestAccessRecipe follows the access recipe of the docs, command by command, on a control plane
// as kubeadm starts one: every certificate of etcd's CA may do everything.
func TestAccessRecipe(t *testing.T) {
	if *output == "" {
		t.Skip("needs programs: make drill")
	}
	if testing.Short() {
		t.Skip("long: make drill")
	}
	folder, err := filepath.Abs(*output)
	require.NoError(t, err)
	*output = folder
	d := &drill{controlPlane: newFiles(t)}
	r := newRecipe(t, d)
	metrics := "--listen-metrics-urls=" + strings.Replace(loopbackURL(t), "https", "http", 1)
	d.etcdFlags = []string{metrics}
	d.startEtcd(folder)
	d.writeEncryption("key1", "key1")
	// The default is 5m: until it compacts, this is what kubeadm starts.
	d.startAPIServer(folder, "--etcd-compaction-interval=5m")
	d.startControllers(folder)
	d.awaitControllers()
	r.writeEtcdManifest(metrics)

	before := r.access("stranger", 1)
	require.Equal(t, "Problem", before["other certificates"])
	require.Equal(t, "Warning", before["authentication"])

	// 1. and 2.: a certificate of root, and users.
	r.run(r.blocks[0])
	r.run(r.blocks[1])
	require.FileExists(t, r.pki("root.key"))
	info, err := os.Stat(r.pki("root.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	// 3. Flags of the static pods, and the same in kubeadm's configuration.
	etcdFlags, apiFlags := r.flags(r.blocks[2]), r.flags(r.blocks[3])
	r.requireSameInKubeadm(r.blocks[4], etcdFlags, apiFlags)
	d.etcdProcess.stop(syscall.SIGTERM)
	d.etcdFlags = append(d.etcdFlags, etcdFlags...)
	d.startEtcd(folder)
	d.restartAPIServer(apiFlags...)

	// 4. The switch, with the API server running. The block ends with access.
	commands, _, found := strings.Cut(r.blocks[5], "guard-etcd access")
	require.True(t, found)
	r.run(commands)
	for check, result := range r.access(r.pki("root"), 0) {
		require.Equal(t, "OK", result, check)
	}
	for _, name := range []string{"stranger", "reader", "etcd"} {
		_, err := d.etcdClient(name).Get(context.Background(), prefix+"namespaces/default")
		require.Error(t, err, "another certificate of the same CA: %s", name)
		_, err = d.etcdClient(name).Put(context.Background(), prefix+"namespaces/other", "{}")
		require.Error(t, err, name)
	}
	limited := d.etcdClient("kube-apiserver-etcd-client")
	_, err = limited.Put(context.Background(), "/elsewhere/key", "value")
	require.ErrorContains(t, err, "permission denied", "the API server's own role is for its keys")
	_, err = limited.Compact(context.Background(), 1)
	require.ErrorContains(t, err, "permission denied")
	r.requireWorkingAPI("before")
	r.requireRoutine()

	// The API server compacts no longer, whatever its flag: two intervals later, what was deleted is
	// still there. With the recipe's flag it does not try either.
	d.restartAPIServer("--etcd-compaction-interval=5s")
	key := r.deleteConfigMap("kept")
	time.Sleep(15 * time.Second)
	require.Contains(t, r.deleted(), key)
	d.restartAPIServer(apiFlags...)
	r.requireWorkingAPI("after")
	time.Sleep(5 * time.Second)
	log, err := os.ReadFile(d.apiProcess.log)
	require.NoError(t, err)
	_, last, _ := strings.Cut(string(log), restartMark)
	last = last[strings.LastIndex(last, restartMark)+1:]
	require.NotContains(t, last, "permission denied")
	r.measureHistory()

	// etcd compacts by itself; here after seconds instead of 30 minutes.
	d.etcdProcess.stop(syscall.SIGTERM)
	d.etcdFlags = append(d.etcdFlags, "--auto-compaction-retention=5s") // the last one counts
	d.startEtcd(folder)
	d.await("etcd to compact", func(context.Context) error {
		if strings.Contains(r.deleted(), key) {
			return fmt.Errorf("%s is still there", key)
		}
		return nil
	})
	r.requireWorkingAPI("compacted")

	// Back.
	r.run(r.blocks[6])
	_, err = d.etcdClient("stranger").Get(context.Background(), prefix+"namespaces/default")
	require.NoError(t, err)
	require.Equal(t, "Warning", r.access("stranger", 1)["authentication"])
	r.requireWorkingAPI("back")
}

// recipe runs commands of the docs.
type recipe struct {
	*drill
	t *testing.T
	// blocks are the fenced ones of the recipe, in their order.
	blocks []string
	// folder stands for /etc/kubernetes/pki/etcd, bin has crictl and etcdctl.
	folder, bin string
}

func newRecipe(t *testing.T, d *drill) *recipe {
	r := &recipe{drill: d, t: t, folder: filepath.Join(d.dir, "pki", "etcd"), bin: filepath.Join(d.dir, "bin")}
	content, err := os.ReadFile(*recipePage)
	require.NoError(t, err)
	_, section, found := strings.Cut(string(content), recipeHeading)
	require.True(t, found, "%s has no %s", *recipePage, recipeHeading)
	section, _, _ = strings.Cut(section, "\n## ")
	var block []string
	inside := false
	for _, line := range strings.Split(section, "\n") {
		line = strings.TrimPrefix(line, "   ") // of a list
		switch fence := strings.HasPrefix(line, "```"); {
		case fence && inside:
			r.blocks = append(r.blocks, strings.Join(block, "\n")+"\n")
			block, inside = nil, false
		case fence:
			inside = true
		case inside:
			block = append(block, line)
		}
	}
	require.Len(t, r.blocks, 7, "certificate, users, flags of etcd, of the API server, kubeadm's configuration, switch, back")

	require.NoError(t, os.MkdirAll(r.folder, 0o700))
	require.NoError(t, os.MkdirAll(r.bin, 0o700))
	for _, name := range []string{"ca.crt", "ca.key"} {
		content, err := os.ReadFile(filepath.Join(d.dir, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(r.pki(name), content, 0o600))
	}
	etcdctl, err := filepath.Abs(filepath.Join(*output, "node/bin/etcdctl"))
	require.NoError(t, err)
	require.FileExists(t, etcdctl, "make node-binaries")
	require.NoError(t, os.Symlink(etcdctl, filepath.Join(r.bin, "etcdctl")))
	// There is no container here: the program is in it under the same name.
	require.NoError(t, os.WriteFile(filepath.Join(r.bin, "crictl"), []byte("#!/bin/sh\n"+
		"case $1 in\nps) echo etcd-container;;\nexec) test \"$2\" = etcd-container || exit 1; shift 2; exec \"$@\";;\n*) exit 1;;\nesac\n"), 0o700))
	return r
}

// pki returns the file in the folder that stands for /etc/kubernetes/pki/etcd.
func (r *recipe) pki(name string) string { return filepath.Join(r.folder, name) }

// run runs the commands of a block as they are written, but for the folder and etcd's address.
func (r *recipe) run(commands string) {
	r.t.Helper()
	if !strings.Contains(commands, "etcdctl()") && strings.Contains(commands, "etcdctl ") {
		definition, _, _ := strings.Cut(r.blocks[1], "\n}\n")
		commands = definition + "\n}\n" + commands
	}
	commands = strings.NewReplacer("/etc/kubernetes/pki/etcd", r.folder, "https://127.0.0.1:2379", r.etcd).Replace(commands)
	command := exec.Command("bash", "-euo", "pipefail", "-c", commands)
	command.Env = append(os.Environ(), "PATH="+r.bin+":"+os.Getenv("PATH"))
	out, err := command.CombinedOutput()
	r.t.Logf("%s\n%s", commands, out)
	require.NoError(r.t, err)
}

// flags returns those that a block adds to a static pod.
func (r *recipe) flags(block string) []string {
	r.t.Helper()
	var flags []string
	require.NoError(r.t, yaml.UnmarshalStrict([]byte(block), &flags))
	require.NotEmpty(r.t, flags)
	return flags
}

// requireSameInKubeadm compares the flags with those of kubeadm's ClusterConfiguration.
func (r *recipe) requireSameInKubeadm(block string, etcdFlags, apiFlags []string) {
	r.t.Helper()
	type component struct {
		ExtraArgs []struct{ Name, Value string } `json:"extraArgs"`
	}
	var configuration struct {
		APIServer component                 `json:"apiServer"`
		Etcd      struct{ Local component } `json:"etcd"`
	}
	require.NoError(r.t, yaml.UnmarshalStrict([]byte(block), &configuration))
	flagsOf := func(c component) (flags []string) {
		for _, a := range c.ExtraArgs {
			flags = append(flags, "--"+a.Name+"="+a.Value)
		}
		return flags
	}
	require.Equal(r.t, etcdFlags, flagsOf(configuration.Etcd.Local))
	require.Equal(r.t, apiFlags, flagsOf(configuration.APIServer))
}

// writeEtcdManifest writes the static pod of etcd as far as access reads it.
func (r *recipe) writeEtcdManifest(metrics string) {
	pod := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: etcd}\nspec:\n  containers:\n  - name: etcd\n    command: [etcd, %s, --key-file=%s, --data-dir=%s]\n",
		metrics, r.controlPlane.pki.Key("etcd"), filepath.Join(r.dir, "etcd.data"))
	require.NoError(r.t, os.WriteFile(r.etcdManifest(), []byte(pod), 0o600))
}

func (r *recipe) etcdManifest() string { return filepath.Join(r.dir, "etcd.yaml") }

// access runs guard-etcd access with a certificate, by its name or its path without .crt, and
// returns the worst result of each check.
func (r *recipe) access(certificate string, exit int) map[string]string {
	r.t.Helper()
	if !filepath.IsAbs(certificate) {
		certificate = filepath.Join(r.dir, certificate)
	}
	result := r.guard("access", "-o", "json", "--etcd-certfile="+certificate+".crt", "--etcd-keyfile="+certificate+".key",
		"--etcd-manifest="+r.etcdManifest(), "--other-certificate="+r.controlPlane.pki.Cert("stranger"))
	require.Equal(r.t, exit, result.code, result.errOut)
	var report struct {
		Checks []struct{ Name, Result string }
	}
	require.NoError(r.t, json.Unmarshal([]byte(result.out), &report))
	found := map[string]string{}
	for _, c := range report.Checks {
		if found[c.Name] == "" || c.Result != "OK" {
			found[c.Name] = c.Result
		}
	}
	return found
}

// restartMark is in the API server's log where it was started again.
const restartMark = "=== restarted\n"

func (d *drill) restartAPIServer(flags ...string) {
	d.t.Helper()
	d.apiProcess.stop(syscall.SIGTERM)
	log, err := os.OpenFile(d.apiProcess.log, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(d.t, err)
	_, err = log.WriteString(restartMark)
	require.NoError(d.t, err)
	require.NoError(d.t, log.Close())
	d.startAPIServer(*output, flags...)
}

// requireWorkingAPI creates, changes, watches, lists and deletes through the API.
func (r *recipe) requireWorkingAPI(name string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	maps := r.kube.CoreV1().ConfigMaps("default")
	watch, err := maps.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	require.NoError(r.t, err)
	defer watch.Stop()
	created, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	select {
	case event := <-watch.ResultChan():
		require.Equal(r.t, created.UID, event.Object.(*corev1.ConfigMap).UID)
	case <-ctx.Done():
		require.Fail(r.t, "no event of the watch")
	}
	created.Data = map[string]string{"a": "b"}
	_, err = maps.Update(ctx, created, metav1.UpdateOptions{})
	require.NoError(r.t, err)
	list, err := maps.List(ctx, metav1.ListOptions{})
	require.NoError(r.t, err)
	require.NotEmpty(r.t, list.Items)
	// An event has a lease of etcd, and a Secret is encrypted.
	_, err = r.kube.CoreV1().Events("default").Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name}, InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: "default", Name: name},
	}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	_, err = r.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	require.NoError(r.t, maps.Delete(ctx, name, metav1.DeleteOptions{}))
}

// deleteConfigMap creates and deletes one, and returns its key.
func (r *recipe) deleteConfigMap(name string) string {
	r.t.Helper()
	ctx := context.Background()
	maps := r.kube.CoreV1().ConfigMaps("default")
	_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	require.NoError(r.t, maps.Delete(ctx, name, metav1.DeleteOptions{}))
	return prefix + "configmaps/default/" + name
}

// deleted returns what guard-etcd log shows, with the API server's own certificate.
func (r *recipe) deleted() string {
	r.t.Helper()
	return r.succeed("log", "--objects", "-o", "json").out
}

// measureHistory writes a lease as a node does, and reports what each write adds to etcd. The
// writes are few: nothing is compacted meanwhile.
func (r *recipe) measureHistory() {
	r.t.Helper()
	const writes = 2000
	ctx := context.Background()
	// The garbage collector deletes the lease of a node that is not there.
	node, err := r.kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0001.example.com"}}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	leases := r.kube.CoordinationV1().Leases("kube-node-lease")
	lease, err := leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID},
		}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(node.Name), LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro())},
	}, metav1.CreateOptions{})
	require.NoError(r.t, err)
	root := r.etcdClientOf(r.pki("root"), "ca")
	size := func() int64 {
		status, err := root.Status(ctx, r.etcd)
		require.NoError(r.t, err)
		return status.DbSizeInUse
	}
	before := size()
	for range writes {
		lease.Spec.RenewTime = ptr.To(metav1.NowMicro())
		lease, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		require.NoError(r.t, err)
	}
	time.Sleep(time.Second) // etcd writes its file ten times a second
	each := (size() - before) / writes
	r.t.Logf("a renewal of a node's lease adds %d bytes to etcd's history", each)
	require.Less(r.t, each, int64(2048), "docs/data-protection.md says about 1 kB")
}

// requireRoutine creates the CronJob without storing it, and runs what its pod does: with its
// arguments, as root without capabilities, and with root's certificate as in the component.
func (r *recipe) requireRoutine() {
	r.t.Helper()
	content, err := os.ReadFile(*routine)
	require.NoError(r.t, err)
	var job batchv1.CronJob
	for _, document := range strings.Split(string(content), "\n---\n") {
		if strings.Contains(document, "kind: CronJob") {
			require.NoError(r.t, yaml.UnmarshalStrict([]byte(document), &job))
		}
	}
	_, err = r.kube.BatchV1().CronJobs(job.Namespace).Create(context.Background(), &job, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
	require.NoError(r.t, err)

	host := filepath.Join(r.dir, "host")
	metrics := filepath.Join(host, "var/lib/node_exporter/textfile_collector")
	require.NoError(r.t, os.MkdirAll(metrics, 0o755))
	arguments := []string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", filepath.Join(*output, "bin/guard-etcd")}
	for _, argument := range job.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Args {
		arguments = append(arguments, strings.Replace(argument, "/var/", host+"/var/", 1))
	}
	arguments = append(arguments, "--apiserver-manifest="+r.manifest(), "--etcd-certfile="+r.pki("root.crt"), "--etcd-keyfile="+r.pki("root.key"))
	out, err := exec.Command("setpriv", arguments...).CombinedOutput()
	require.NoError(r.t, err, string(out))
	r.t.Logf("%s", out)
	written, err := os.ReadFile(filepath.Join(metrics, "guard-etcd.prom"))
	require.NoError(r.t, err)
	require.Contains(r.t, string(written), "\nguard_etcd_snapshots 1\n")
	require.Contains(r.t, string(written), "\nguard_etcd_snapshot_damaged_keys 0\n")
	saved, err := filepath.Glob(filepath.Join(host, "var/backups/guard-etcd/*/manifest.json"))
	require.NoError(r.t, err)
	require.Len(r.t, saved, 1)
	r.succeed("verify", filepath.Dir(saved[0]))
}
