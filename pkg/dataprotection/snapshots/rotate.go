package snapshots

import (
	"fmt"
	"maps"
	"os"
	"slices"
)

// fleeting resources come and go, so that fewer of them mean nothing.
var fleeting = []string{
	"events", "events.events.k8s.io", "leases.coordination.k8s.io", "masterleases", "pods", "endpoints", "endpointslices.discovery.k8s.io",
	"jobs.batch", "replicasets.apps", "controllerrevisions.apps", "volumeattachments.storage.k8s.io",
	"certificatesigningrequests.certificates.k8s.io",
}

// shrinkPercent is how much less the newest snapshot may have of a resource before the last one
// that had more is kept.
const shrinkPercent = 20

// Kept is a snapshot that rotation keeps beyond the newest.
type Kept struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Rotate removes all but the newest snapshots of a folder. It keeps, of each resource of which the
// newest snapshot has over 20 % less, the last snapshot that had more: the backups of the hours
// after an accident must not push out the one before it. When the objects are restored it goes the
// way of the others. newest must be at least 1.
func Rotate(dir string, newest int) (removed []string, kept []Kept, err error) {
	// Those without a readable manifest are neither counted nor removed.
	list, listErr := List(dir)
	if len(list) <= newest {
		return nil, nil, listErr
	}
	reasons := protect(list)
	for _, s := range list[:len(list)-newest] {
		if reason := reasons[s]; reason != "" {
			kept = append(kept, Kept{Path: s.Path, Reason: reason})
			continue
		}
		if err := os.RemoveAll(s.Path); err != nil {
			return removed, kept, err
		}
		removed = append(removed, s.Path)
	}
	return removed, kept, listErr
}

// protect returns why snapshots are needed still. The list is sorted by time and not empty.
func protect(list []*Saved) map[*Saved]string {
	reasons := map[*Saved]string{}
	for _, s := range shrinks(list) {
		if reasons[s.before] == "" {
			reasons[s.before] = fmt.Sprintf("it is the last with %d %s, of which the newest has %d", s.Before, s.Resource, s.Now)
		}
	}
	return reasons
}

// Shrink is a resource of which the newest snapshot has over 20 % less than an older one.
type Shrink struct {
	Resource string `json:"resource"`
	// Before is how many objects the last snapshot had that had more, and Now the newest.
	Before int `json:"before"`
	Now    int `json:"now"`
	// Path of the snapshot that had more.
	Path string `json:"path"`

	before *Saved
}

// minShrink is how many objects less are worth a report. One of two is over 20 %, and no accident.
const minShrink = 10

// Shrunk returns the resources of which the newest snapshot has over 20 % and at least 10 objects
// less than an older one. The list is sorted by time, as List returns it.
func Shrunk(list []*Saved) []Shrink {
	if len(list) == 0 {
		return nil
	}
	return slices.DeleteFunc(shrinks(list), func(s Shrink) bool { return s.Before-s.Now < minShrink })
}

// shrinks returns what the newest snapshot has over 20 % less of than an older one, with the last
// of those.
func shrinks(list []*Saved) []Shrink {
	var all []Shrink
	last := list[len(list)-1]
	done := slices.Clone(fleeting)
	for _, s := range slices.Backward(list[:len(list)-1]) {
		for _, resource := range slices.Sorted(maps.Keys(s.Resources)) {
			before, now := s.Resources[resource].Objects, last.Resources[resource].Objects
			if slices.Contains(done, resource) || now*100 >= before*(100-shrinkPercent) {
				continue
			}
			done = append(done, resource)
			all = append(all, Shrink{Resource: resource, Before: before, Now: now, Path: s.Path, before: s})
		}
	}
	return all
}
