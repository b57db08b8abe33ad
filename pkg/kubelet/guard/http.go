package guard

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// PodsPath is served on the kubelet's authenticated port.
const PodsPath = "/guard/pods"

// ObjectsQuery is the query parameter of PodsPath that adds what is saved of each pod, when it
// is "true".
//
// The objects need no right of their own. Pods, with the values of their environments, are what
// the kubelet serves at /pods with the same right (nodes/pods); its authorizer sees the path, not
// the query. Claims and volumes name Secrets but hold none of their content.
const ObjectsQuery = "objects"

// State of a protected pod. The zero value is invalid.
type State string

const (
	// Protected: nothing tries to stop the pod.
	Protected State = "Protected"
	// Held: an attempt was refused and its reason persists.
	Held State = "Held"
	// Terminating: there is evidence, or the pod ended by itself.
	Terminating State = "Terminating"
)

// PodList is the response to GET /guard/pods.
type PodList struct {
	// Version of the kubelet, for example v1.36.3+guard.0.1.0.
	Version string `json:"version"`
	// Mode of the guard.
	Mode Mode `json:"mode"`
	// Items are sorted by namespace, name and UID.
	Items []PodState `json:"items"`
	// Waiting are the pods whose start waits for a held pod, sorted alike.
	Waiting []WaitingState `json:"waiting,omitempty"`
}

// WaitingState is a pod that does not start its containers, because a held pod of
// the same name runs and both would use what cannot be shared.
type WaitingState struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// HeldUID is the UID of the held pod.
	HeldUID types.UID `json:"heldUID"`
	// Shares is what both would use, for example "claim data" or "host port 5432/TCP".
	Shares []string `json:"shares"`
	// Since is when the pod would have started.
	Since time.Time `json:"since"`
}

// PodState is what the guard knows about one protected pod.
type PodState struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	State     State     `json:"state"`
	// NodeName is the node that the pod was bound to, as in its spec: another one than
	// the kubelet's when that has changed its name. Empty for a pod that is known from
	// the runtime alone.
	NodeName string `json:"nodeName,omitempty"`
	// ObjectPresent: the API source has the pod's object.
	ObjectPresent bool `json:"objectPresent"`
	// Holds are sorted by cause. Empty unless the state is Held.
	Holds []HoldState `json:"holds,omitempty"`
	// Audited are attempts that mode Enforce would have refused.
	Audited []HoldState `json:"audited,omitempty"`
	// Evidence that the deletion is explicit, when there is any.
	Evidence *Evidence `json:"evidence,omitempty"`
	// Saved is there with ObjectsQuery only, and for pods that have saved objects.
	Saved *SavedObjects `json:"saved,omitempty"`
}

// SavedObjects is what the guard saves of a pod, as it is on disk or about to be.
type SavedObjects struct {
	// Pod is the newest object from the API, with the status of its last write.
	Pod *v1.Pod `json:"pod"`
	// Volumes are the claims of the pod that were bound, with the volumes behind them.
	Volumes []ClaimedVolume `json:"volumes,omitempty"`
}

// HoldState is one refused attempt.
type HoldState struct {
	Cause Cause `json:"cause"`
	// Since is when the first attempt was refused, LastAttempt the newest.
	Since       time.Time `json:"since"`
	LastAttempt time.Time `json:"lastAttempt"`
	Message     string    `json:"message,omitempty"`
}

// Pods returns the state of every protected pod.
func (g *Guard) Pods() PodList { return g.pods(false) }

// pods returns the state of every protected pod, with what is saved of it or not. Saved objects
// are in memory and never changed, only replaced: they are read without the lock, and are not
// the caller's to change.
func (g *Guard) pods(objects bool) PodList {
	list := PodList{Version: Version(), Mode: g.config.Mode, Items: []PodState{}}
	g.mu.Lock()
	for _, r := range g.knownLocked() {
		state := PodState{
			Namespace: r.namespace, Name: r.name, UID: r.uid,
			State:         r.stateLocked(),
			NodeName:      r.boundToLocked(),
			ObjectPresent: r.present,
			Holds:         holdStates(r.holds),
			Audited:       holdStates(r.audited),
		}
		if r.evidence != nil {
			evidence := *r.evidence
			state.Evidence = &evidence
		}
		if objects && r.saved != nil {
			state.Saved = &SavedObjects{Pod: r.saved, Volumes: r.volumes}
		}
		list.Items = append(list.Items, state)
	}
	list.Waiting = g.waitingLocked()
	g.mu.Unlock()
	sort.Slice(list.Items, func(i, j int) bool {
		a, b := list.Items[i], list.Items[j]
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		if a.Name != b.Name {
			return a.Name < b.Name
		}
		return a.UID < b.UID
	})
	return list
}

func (r *podRecord) stateLocked() State {
	switch {
	case r.evidence != nil || r.exemption.end != "":
		return Terminating
	case len(r.holds) > 0:
		return Held
	default:
		return Protected
	}
}

func holdStates(holds map[Cause]*hold) []HoldState {
	states := make([]HoldState, 0, len(holds))
	for cause, h := range holds {
		states = append(states, HoldState{Cause: cause, Since: h.since, LastAttempt: h.last, Message: h.newest()})
	}
	sort.Slice(states, func(i, j int) bool { return states[i].Cause < states[j].Cause })
	return states
}

// ServeHTTP serves GET /guard/pods. The kubelet has authenticated and authorized the
// request.
func (g *Guard) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET is supported", http.StatusMethodNotAllowed)
		return
	}
	objects, err := objectsRequested(request.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.watched()
	body, err := json.Marshal(g.pods(objects))
	if err != nil {
		g.metrics.errors.WithLabelValues(opHTTP).Inc()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(append(body, '\n')); err != nil {
		klog.V(4).InfoS("Could not write the response", "path", PodsPath, "err", err)
	}
}

// objectsRequested returns the value of ObjectsQuery.
func objectsRequested(query string) (bool, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, fmt.Errorf("query: %w", err)
	}
	switch requested := values[ObjectsQuery]; {
	case len(requested) == 0:
		return false, nil
	case len(requested) > 1:
		return false, fmt.Errorf("query parameter %s: given %d times, expected once", ObjectsQuery, len(requested))
	case requested[0] == "true":
		return true, nil
	case requested[0] == "false":
		return false, nil
	default:
		return false, fmt.Errorf("query parameter %s: %q is neither true nor false", ObjectsQuery, requested[0])
	}
}
