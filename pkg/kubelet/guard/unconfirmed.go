package guard

import (
	"maps"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// A kubelet stops nothing before it has received its pods from its sources, and manages
// nothing either. That lasts when it may not read its pods, because its name is not that
// of its credentials, or when it has no API server. Meanwhile the pods that an earlier
// kubelet saved are reported, so that such a node is not taken for an empty one.

const (
	// unconfirmedPatience is how long a kubelet may wait for its pods before it logs that,
	// unconfirmedReports how often it then logs it.
	unconfirmedPatience = time.Minute
	unconfirmedReports  = 10 * time.Minute
)

// knownLocked returns the records, and those that the first message of the API source
// will make of saved pods.
func (g *Guard) knownLocked() []*podRecord {
	known := slices.Collect(maps.Values(g.records))
	for uid, saved := range g.loaded {
		if g.records[uid] == nil && g.protectsObject(saved.Pod) {
			r := newRecord(uid, saved.Pod.Namespace, saved.Pod.Name)
			r.pod = saved.Pod
			r.adopt(saved)
			known = append(known, r)
		}
	}
	return known
}

// unconfirmedLocked counts the protected pods that an earlier kubelet saved, as long as
// this one has not received its pods from the API source.
func (g *Guard) unconfirmedLocked() int {
	n := 0
	for _, saved := range g.loaded {
		if saved.Evidence == nil && g.protectsObject(saved.Pod) {
			n++
		}
	}
	return n
}

// reportUnconfirmed logs that the kubelet still waits for its pods.
func (g *Guard) reportUnconfirmed() {
	now := g.clock.Now()
	g.mu.Lock()
	n := g.unconfirmedLocked()
	due := n > 0 && !now.Before(g.unconfirmedReport)
	if due {
		g.unconfirmedReport = now.Add(unconfirmedReports)
	}
	g.mu.Unlock()
	if due {
		klog.ErrorS(nil, "The kubelet has not received its pods from the API server. Protected pods of an earlier start run on, but are not managed. Can the kubelet reach the API server, and are its credentials for this node name?", "pods", n, "node", g.nodeName)
	}
}
