package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// candidate is an object that the source has and that may be selected.
type candidate struct {
	object *objects.Object
	// last is the version that was current last, without its value if no selector names its key.
	last *mvccpb.KeyValue
	// deleted is the revision of its deletion; 0 while it is there.
	deleted int64

	// good is the last version that was not terminating, with its object; nil with the reason
	// in err. since is the revision at which the deletion started. See resolve.
	good       *mvccpb.KeyValue
	goodObject *objects.Object
	since      int64
	err        error
}

// skippedFolders are never restored and change all the time: they are not even decoded.
// --include=Event and the like do not reach them, since most have a lease of etcd, which ends.
var skippedFolders = []string{"events/", "leases/", "masterleases/", "peerserverleases/"}

// source reads candidates.
type source struct {
	history.Reader
	decoder *objects.Decoder
	prefix  string
	// live: the source is the etcd that is written to, so that what it has need not be restored.
	live bool
	// revision is the state to restore; 0 is the newest.
	revision int64
	// unreadable are keys of which the last version is not decodable or was compacted.
	unreadable map[string]error
}

// until is the revision of the state to restore.
func (s *source) until() int64 {
	if s.revision != 0 {
		return s.revision
	}
	return s.Bounds().Newest
}

// candidates returns what the source can restore: what is there at its revision, unless that is
// the present, and what was deleted before. Sorted by key.
func (s *source) candidates(ctx context.Context, selectors []Selector) ([]*candidate, error) {
	found := map[string]*candidate{}
	keep := func(c *candidate, kv *mvccpb.KeyValue) {
		object, err := s.decoder.Decode(ctx, string(kv.Key), kv.Value)
		if err == nil {
			err = object.KeyError()
		}
		if err != nil {
			s.unreadable[string(kv.Key)] = err
			return
		}
		delete(s.unreadable, string(kv.Key))
		// 100,000 whole objects would fill the memory; what is selected is read again.
		object.Typed = nil
		if !slices.ContainsFunc(selectors, func(selector Selector) bool { return selector.matchesKey(s.prefix, object.Key) }) {
			kv.Value = nil
		}
		c.object, c.last = object, kv
		found[string(kv.Key)] = c
	}
	skip := func(key string) bool {
		folder := strings.TrimPrefix(key, s.prefix)
		return slices.ContainsFunc(skippedFolders, func(skipped string) bool { return strings.HasPrefix(folder, skipped) })
	}
	if err := s.Bounds().CheckRevision(s.until()); err != nil {
		return nil, fmt.Errorf("--revision: %w", err)
	}
	// With a revision, the state at it is what is wanted, not what was deleted before.
	if s.revision == 0 {
		err := s.Deletions(ctx, s.prefix, func(d history.Deletion) error {
			switch {
			case skip(d.Key):
			case d.Last == nil:
				s.unreadable[d.Key] = fmt.Errorf("deleted at revision %d: %w", d.Revision, history.ErrCompacted)
			default:
				keep(&candidate{deleted: d.Revision}, d.Last)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if !s.live || s.revision != 0 {
		err := s.List(ctx, s.prefix, s.until(), func(kv *mvccpb.KeyValue) error {
			if !skip(string(kv.Key)) {
				keep(&candidate{}, kv)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	list := make([]*candidate, 0, len(found))
	for _, c := range found {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *candidate) int { return strings.Compare(a.object.Key, b.object.Key) })
	return list, nil
}

// selectObjects returns the candidates that the selectors name, and what they own or came with,
// resolved and sorted by key.
func (s *source) selectObjects(ctx context.Context, selectors []Selector) ([]*candidate, error) {
	all, err := s.candidates(ctx, selectors)
	if err != nil {
		return nil, err
	}
	chosen := map[string]*candidate{}
	for _, selector := range selectors {
		matched, err := s.matching(ctx, all, selector)
		if err != nil {
			return nil, err
		}
		for _, c := range matched {
			chosen[c.object.Key] = c
		}
	}
	if err := s.addOwned(ctx, all, chosen); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(c *candidate) bool { return chosen[c.object.Key] == nil }), nil
}

// matching returns what a selector names, resolved. Of what was deleted, only what went with its
// container or after it started to terminate: what was deleted before was not part of it.
func (s *source) matching(ctx context.Context, all []*candidate, selector Selector) ([]*candidate, error) {
	var matched []*candidate
	for _, c := range all {
		if selector.matchesKey(s.prefix, c.object.Key) && selector.matches(c.object, s.prefix) {
			matched = append(matched, c)
		}
	}
	if len(matched) == 0 {
		for key, err := range s.unreadable {
			if selector.matchesKey(s.prefix, key) {
				return nil, fmt.Errorf("%s: %s: %w", selector, key, err)
			}
		}
		bounds := s.Bounds()
		return nil, fmt.Errorf("%s: %w, which has the revisions %d to %d", selector, errNothingSelected, bounds.Oldest, bounds.Newest)
	}
	if err := s.resolve(ctx, matched); err != nil {
		return nil, err
	}
	since := int64(0)
	for _, c := range matched {
		// Without a terminating version it was removed past the API, and it is unknown when
		// the removal of the rest started.
		if c.object.Key == selector.container(s.prefix) && c.since < c.deleted {
			since = c.since
		}
	}
	return slices.DeleteFunc(matched, func(c *candidate) bool { return c.deleted != 0 && c.deleted < since }), nil
}

// addOwned adds what the chosen own, transitively. Of what was deleted, only what went with its
// owner.
func (s *source) addOwned(ctx context.Context, all []*candidate, chosen map[string]*candidate) error {
	owners := map[types.UID]*candidate{}
	added := make([]*candidate, 0, len(chosen))
	for _, c := range chosen {
		added = append(added, c)
	}
	for len(added) > 0 {
		for _, c := range added {
			chosen[c.object.Key] = c
			owners[c.object.UID] = c
		}
		added = nil
		for _, c := range all {
			if chosen[c.object.Key] != nil {
				continue
			}
			var owner *candidate
			for _, reference := range c.object.Owners {
				if owners[reference.UID] != nil {
					owner = owners[reference.UID]
				}
			}
			if owner != nil && (c.deleted == 0 || owner.deleted == 0 || c.deleted >= owner.since) {
				added = append(added, c)
			}
		}
		if err := s.resolve(ctx, added); err != nil {
			return err
		}
	}
	return nil
}

// parallelReads of versions at a time: etcd serves them concurrently.
const parallelReads = 16

// resolve finds of each candidate the last version that was not terminating. What cannot be
// found is in the candidate's err; an error is one of the store.
func (s *source) resolve(ctx context.Context, list []*candidate) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelReads)
	for _, c := range list {
		if c.good != nil || c.err != nil {
			continue
		}
		group.Go(func() error { return s.resolveOne(ctx, c) })
	}
	return group.Wait()
}

func (s *source) resolveOne(ctx context.Context, c *candidate) error {
	c.since = c.deleted
	if c.last.Value == nil {
		// Not at the revision of the version, which may be compacted: at one at which it was current.
		at := c.deleted - 1
		if c.deleted == 0 {
			at = s.until()
		}
		kv, err := s.Get(ctx, c.object.Key, at)
		if err != nil {
			return err
		}
		if kv == nil {
			return fmt.Errorf("%s: its version of revision %d is missing", c.object.Key, c.last.ModRevision)
		}
		c.last = kv
	}
	good, terminating, err := history.LastVersion(ctx, s.Reader, c.last, func(kv *mvccpb.KeyValue) bool {
		object, err := s.decoder.Decode(ctx, string(kv.Key), kv.Value)
		if err != nil || object.Terminating != nil {
			return false
		}
		if _, ok := object.Typed.(*corev1.ConfigMap); ok {
			object.Typed = nil // large, and no check reads it
		}
		c.goodObject = object
		return true
	})
	if terminating != nil && c.deleted != 0 {
		c.since = terminating.ModRevision
	}
	switch {
	case errors.Is(err, history.ErrCompacted):
		c.err = fmt.Errorf("its last version that was not terminating is older than the history, which starts at revision %d", s.Bounds().Oldest)
		return nil
	case err != nil:
		return err
	case good == nil:
		c.err = errors.New("the history has no version that was not terminating")
		return nil
	}
	c.good = good
	return nil
}
