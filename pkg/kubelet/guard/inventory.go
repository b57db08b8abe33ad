package guard

import (
	"maps"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inventory has the pod of each container and sandbox, from the calls that pass between
// the kubelet and the container runtime. The kubelet lists all of both once a second
// (pkg/kubelet/pleg/generic.go), so the guard rarely needs a call of its own. States
// change between two lists and are not kept; the pod of a container never changes.
//
// It is safe for concurrent use.
type inventory struct {
	mu sync.Mutex
	// containers and sandboxes have the UID of the pod by the runtime's ID.
	containers map[string]types.UID
	sandboxes  map[string]types.UID
	// pods has the newest sandbox of each pod.
	pods map[types.UID]sandbox
	// listed is when all sandboxes were listed last.
	listed time.Time
}

// sandbox is what the kubelet wrote on a sandbox when it made it.
type sandbox struct {
	id        string
	createdAt int64
	labels    map[string]string
	notes     map[string]string
}

// listedContainers takes over a list of all containers.
func (i *inventory) listedContainers(all []*runtimeapi.Container) {
	containers := make(map[string]types.UID, len(all))
	for _, c := range all {
		containers[c.Id] = types.UID(c.Labels[podUIDLabel])
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.containers = containers
}

// listedSandboxes takes over a list of all sandboxes.
func (i *inventory) listedSandboxes(all []*runtimeapi.PodSandbox, now time.Time) {
	sandboxes := make(map[string]types.UID, len(all))
	pods := make(map[types.UID]sandbox, len(all))
	for _, s := range all {
		uid := types.UID(s.Labels[podUIDLabel])
		sandboxes[s.Id] = uid
		if known, ok := pods[uid]; !ok || s.CreatedAt > known.createdAt {
			pods[uid] = sandbox{id: s.Id, createdAt: s.CreatedAt, labels: s.Labels, notes: s.Annotations}
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sandboxes, i.pods, i.listed = sandboxes, pods, now
}

func (i *inventory) addContainer(id string, uid types.UID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.containers == nil {
		i.containers = map[string]types.UID{}
	}
	i.containers[id] = uid
}

func (i *inventory) addSandbox(id string, config *runtimeapi.PodSandboxConfig, now time.Time) {
	uid := types.UID(config.GetMetadata().GetUid())
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sandboxes == nil {
		i.sandboxes, i.pods = map[string]types.UID{}, map[types.UID]sandbox{}
	}
	i.sandboxes[id] = uid
	i.pods[uid] = sandbox{id: id, createdAt: now.UnixNano(), labels: config.GetLabels(), notes: config.GetAnnotations()}
}

// ofContainer returns the UID of the pod that a container belongs to.
func (i *inventory) ofContainer(id string) (types.UID, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	uid, ok := i.containers[id]
	return uid, ok
}

// ofSandbox returns the UID of the pod that a sandbox belongs to.
func (i *inventory) ofSandbox(id string) (types.UID, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	uid, ok := i.sandboxes[id]
	return uid, ok
}

// pod returns the pod as its newest sandbox describes it, or nil. known is false when
// the pod has no sandbox in a list that is older than maxAge.
func (i *inventory) pod(uid types.UID, now time.Time, maxAge time.Duration) (pod *v1.Pod, known bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s, ok := i.pods[uid]; ok {
		return podOfSandbox(uid, s.labels, s.notes), true
	}
	return nil, !i.listed.IsZero() && now.Sub(i.listed) < maxAge
}

// podOfSandbox returns the pod that the labels and annotations of a sandbox describe. It
// leaves out the labels that the kubelet adds to those of the pod, which must not match
// a selector (pkg/kubelet/kuberuntime/labels.go).
func podOfSandbox(uid types.UID, labels, annotations map[string]string) *v1.Pod {
	own := maps.Clone(labels)
	maps.DeleteFunc(own, func(key, _ string) bool { return strings.HasPrefix(key, kubeletLabelPrefix) })
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		UID:         uid,
		Namespace:   labels[podNamespaceLabel],
		Name:        labels[podNameLabel],
		Labels:      own,
		Annotations: annotations,
	}}
}
