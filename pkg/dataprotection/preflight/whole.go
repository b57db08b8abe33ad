package preflight

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

const (
	// bumpMargin is added to the difference of the revisions: etcd goes on until it is stopped,
	// and its documentation takes a billion as more than enough for that.
	bumpMargin = 1_000_000_000
	// guardedVersion is in the version of every guarded kubelet.
	guardedVersion = "+guard."
)

// movingFolders have what the control plane writes all the time and makes again by itself.
var movingFolders = []string{"events/", "leases/", "masterleases/", "peerserverleases/"}

// Whole is what the restore of a whole snapshot, by etcdutl, would do to the cluster that is there.
type Whole struct {
	File string `json:"file"`
	// Snapshot and Live are the newest revisions; Live is 0 if etcd does not respond, and then
	// nothing is compared.
	Snapshot int64 `json:"snapshotRevision"`
	Live     int64 `json:"liveRevision,omitempty"`
	// Resources that would not be as they are, sorted by name.
	Resources []ResourceChange `json:"resources"`
	// Pods that run and would lose their object, those that are killed first.
	Pods []LostPod `json:"pods"`
	// Bump is for etcdutl's --bump-revision: the restored etcd continues above all revisions that a
	// client has seen.
	Bump int64 `json:"bumpRevision"`
	// Commands restore each member.
	Commands []string `json:"commands"`
}

// ResourceChange counts what a restore would change of a resource.
type ResourceChange struct {
	Resource string `json:"resource"`
	// ComeBack are objects that the snapshot has and etcd has not, or has with another UID.
	ComeBack int `json:"comeBack,omitempty"`
	// Lost are objects that etcd has and the snapshot has not, or has with another UID.
	Lost int `json:"lost,omitempty"`
	// Older objects: the snapshot has another version of them.
	Older int `json:"older,omitempty"`
}

// LostPod is a running pod without an object in the snapshot.
type LostPod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node"`
	// Held: its node is guarded, and it is protected, so that it runs on; the kubelet kills others.
	Held bool `json:"held"`
}

// version identifies what a key holds: created at another revision, it is another object, unless
// it was restored with its UID.
type version struct {
	created, modified int64
}

// CompareWhole compares the newest state of a snapshot with that of etcd, by resource.
func CompareWhole(ctx context.Context, file, live history.Reader, decoder *objects.Decoder, prefix string) (*Whole, error) {
	w := &Whole{Snapshot: file.Bounds().Newest, Live: live.Bounds().Newest, Resources: []ResourceChange{}, Pods: []LostPod{}}
	w.Bump = max(0, w.Live-w.Snapshot) + bumpMargin
	changes := map[string]*ResourceChange{}
	change := func(key string) *ResourceChange {
		name := decoder.ResourceOf(key).String()
		if changes[name] == nil {
			changes[name] = &ResourceChange{Resource: name}
		}
		return changes[name]
	}
	moving := func(key string) bool {
		folder := strings.TrimPrefix(key, prefix)
		return slices.ContainsFunc(movingFolders, func(moving string) bool { return strings.HasPrefix(folder, moving) })
	}
	saved := map[string]version{}
	err := file.List(ctx, prefix, w.Snapshot, func(kv *mvccpb.KeyValue) error {
		if key := string(kv.Key); !moving(key) {
			saved[key] = version{kv.CreateRevision, kv.ModRevision}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	guarded := map[string]bool{}
	var pods []LostPod
	err = live.List(ctx, prefix, w.Live, func(kv *mvccpb.KeyValue) error {
		key := string(kv.Key)
		if strings.HasPrefix(key, prefix+"minions/") {
			if name, ok := guardedNode(ctx, decoder, kv); ok {
				guarded[name] = true
			}
		}
		was, known := saved[key]
		delete(saved, key)
		switch {
		case moving(key):
			return nil
		case known && was.created != kv.CreateRevision:
			same, err := sameObject(ctx, decoder, file, kv)
			if err != nil {
				return err
			}
			if same {
				change(key).Older++
				return nil
			}
			change(key).ComeBack++
		case known:
			if was.modified != kv.ModRevision {
				change(key).Older++
			}
			return nil
		}
		change(key).Lost++
		if pod := runningPod(ctx, decoder, prefix, kv); pod != nil {
			pods = append(pods, *pod)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for key := range saved {
		change(key).ComeBack++
	}
	for _, c := range changes {
		w.Resources = append(w.Resources, *c)
	}
	slices.SortFunc(w.Resources, func(a, b ResourceChange) int { return cmp.Compare(a.Resource, b.Resource) })
	for _, pod := range pods {
		pod.Held = pod.Held && guarded[pod.Node]
		w.Pods = append(w.Pods, pod)
	}
	slices.SortStableFunc(w.Pods, func(a, b LostPod) int {
		switch {
		case a.Held == b.Held:
			return 0
		case b.Held:
			return -1
		}
		return 1
	})
	return w, nil
}

// WithoutEtcd is what is known of a restore while no etcd responds: nothing to compare with.
func WithoutEtcd(file history.Reader) *Whole {
	return &Whole{Snapshot: file.Bounds().Newest, Resources: []ResourceChange{}, Pods: []LostPod{}, Bump: bumpMargin}
}

// sameObject reports whether a key holds an object with the UID that it has in the snapshot. What
// does not decode is another one.
func sameObject(ctx context.Context, decoder *objects.Decoder, file history.Reader, kv *mvccpb.KeyValue) (bool, error) {
	saved, err := file.Get(ctx, string(kv.Key), file.Bounds().Newest)
	if err != nil || saved == nil {
		return false, err
	}
	was, wasErr := decoder.Decode(ctx, string(kv.Key), saved.Value)
	is, isErr := decoder.Decode(ctx, string(kv.Key), kv.Value)
	return wasErr == nil && isErr == nil && was.UID == is.UID, nil
}

func guardedNode(ctx context.Context, decoder *objects.Decoder, kv *mvccpb.KeyValue) (name string, guarded bool) {
	object, err := decoder.Decode(ctx, string(kv.Key), kv.Value)
	if err != nil {
		return "", false
	}
	node, ok := object.Typed.(*corev1.Node)
	return object.Name, ok && strings.Contains(node.Status.NodeInfo.KubeletVersion, guardedVersion)
}

// runningPod returns a pod that has containers on a node, with Held for one that is protected;
// nil for others. Static pods need no object.
func runningPod(ctx context.Context, decoder *objects.Decoder, prefix string, kv *mvccpb.KeyValue) *LostPod {
	if !strings.HasPrefix(string(kv.Key), prefix+"pods/") {
		return nil
	}
	object, err := decoder.Decode(ctx, string(kv.Key), kv.Value)
	if err != nil {
		return nil
	}
	pod, ok := object.Typed.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	if _, static := pod.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return nil
	}
	return &LostPod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName,
		Held: pod.Labels[guardv1alpha1.ExplicitDeletionLabel] == guardv1alpha1.ExplicitDeletionRequired}
}

// SetCommands sets the file and, for each member, the command that restores it into a data
// directory.
func (w *Whole) SetCommands(file, dataDir string, members []snapshots.Member) {
	w.File, w.Commands = file, []string{}
	var cluster []string
	for _, m := range members {
		for _, peer := range m.PeerURLs {
			cluster = append(cluster, m.Name+"="+peer)
		}
	}
	for _, m := range members {
		w.Commands = append(w.Commands, fmt.Sprintf(
			"etcdutl snapshot restore %s --data-dir=%s --name=%s --initial-advertise-peer-urls=%s --initial-cluster=%s --bump-revision=%d --mark-compacted",
			quote(file), quote(dataDir), quote(m.Name), quote(strings.Join(m.PeerURLs, ",")), quote(strings.Join(cluster, ",")), w.Bump))
	}
}

var unquoted = regexp.MustCompile(`^[\w@%+=:,./-]+$`)

// quote returns a word of a shell command.
func quote(word string) string {
	if unquoted.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
