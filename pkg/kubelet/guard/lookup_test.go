package guard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

// fakeDeletions is an API server for records.
type fakeDeletions struct {
	records []DeletionRecord
	// nodes has the node of each record, by name.
	nodes map[string]string
	// err is the response to everything, listErr that to lists.
	err, listErr error
	// hang makes every query wait for the end of its context.
	hang bool
	// requests has the node or UID of each request.
	requests []string
	at       []time.Time
	now      func() time.Time
}

func (d *fakeDeletions) request(ctx context.Context, about string, errs ...error) error {
	d.requests = append(d.requests, about)
	if d.now != nil {
		d.at = append(d.at, d.now())
	}
	if d.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return errors.Join(errs...)
}

func (d *fakeDeletions) OfNode(ctx context.Context, node string) ([]DeletionRecord, error) {
	if err := d.request(ctx, "node "+node, d.err, d.listErr); err != nil {
		return nil, err
	}
	var found []DeletionRecord
	for _, r := range d.records {
		if d.nodes[r.Metadata.Name] == node {
			found = append(found, r)
		}
	}
	return found, nil
}

func (d *fakeDeletions) Of(ctx context.Context, uid types.UID) (*DeletionRecord, error) {
	if err := d.request(ctx, string(uid), d.err); err != nil {
		return nil, err
	}
	for i := range d.records {
		if d.records[i].Metadata.Name == string(uid) {
			return &d.records[i], nil
		}
	}
	return nil, nil
}

// record adds a record of the pod; without a node when that is empty.
func (d *fakeDeletions) record(pod *v1.Pod, node string) {
	if d.nodes == nil {
		d.nodes = map[string]string{}
	}
	d.nodes[string(pod.UID)] = node
	d.records = append(d.records, *recordOf(pod))
}

func recordOf(pod *v1.Pod) *DeletionRecord {
	r := &DeletionRecord{}
	r.APIVersion, r.Kind = "kubelet-guard.io/v1alpha1", "PodDeletion"
	r.Metadata.Name, r.Spec.Namespace, r.Spec.Name = string(pod.UID), pod.Namespace, pod.Name
	return r
}

// lookingUp makes a Guard that holds the pods and looks for records in them.
func lookingUp(t *testing.T, deletions *fakeDeletions, pods ...*v1.Pod) *fixture {
	t.Helper()
	f := newFixture(t)
	f.deletions, deletions.now = deletions, f.clock.Now
	f.lose(pods...)
	return f
}

// lose makes the objects of running pods vanish.
func (f *fixture) lose(pods ...*v1.Pod) {
	f.t.Helper()
	f.running(pods...)
	f.ObserveSource(apiSource, nil)
	for _, pod := range pods {
		require.True(f.t, f.HoldVanished(apiSource, pod))
	}
}

// look lets time go by as runLookups does, and returns the pods that were released.
func (f *fixture) look(d time.Duration) []types.UID {
	end := f.clock.Now().Add(d)
	var released []types.UID
	for {
		wait, some := f.planLookup()
		if now := f.clock.Now(); !some || now.Add(wait).After(end) {
			f.clock.SetTime(end)
			return released
		}
		f.clock.Step(wait)
		released = append(released, f.lookUp(context.Background())...)
	}
}

func vanishing(n int) []*v1.Pod {
	pods := make([]*v1.Pod, n)
	for i := range pods {
		pods[i] = protectedPod(fmt.Sprintf("p%03d", i))
		pods[i].Spec.NodeName = "node-1"
	}
	return pods
}

func TestLookUp(t *testing.T) {
	t.Run("requests nothing while no pod is held without its object", func(t *testing.T) {
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions)
		pod := protectedPod("present")
		f.running(pod)
		f.look(time.Hour)
		require.True(t, f.Refuse(pod, Evicted, ""))
		f.look(time.Hour)
		f.watched()
		f.look(time.Hour)
		assert.Empty(t, deletions.requests)
	})
	t.Run("requests a single pod by its name", func(t *testing.T) {
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions, vanishing(1)...)
		f.look(time.Minute)
		assert.Equal(t, []string{"p000-uid"}, slices.Compact(deletions.requests))
		first := deletions.at[0].Sub(epoch)
		assert.GreaterOrEqual(t, first, firstLookup)
		assert.LessOrEqual(t, first, firstLookup+firstLookupSpread)
	})
	t.Run("makes one request per interval, however many pods are held", func(t *testing.T) {
		for _, n := range []int{1, 2, 110} {
			deletions := &fakeDeletions{}
			f := lookingUp(t, deletions, vanishing(n)...)
			f.look(lookupPatience - time.Minute)
			requests := len(deletions.requests)
			assert.LessOrEqual(t, requests, int((lookupPatience-time.Minute)/lookupInterval)+1, n)
			assert.GreaterOrEqual(t, requests, int((lookupPatience-time.Minute)/(lookupInterval+lookupInterval/5))-1, n)
			f.look(2 * time.Minute)
			requests = len(deletions.requests)
			f.look(time.Hour)
			assert.LessOrEqual(t, len(deletions.requests)-requests, int(time.Hour/slowLookupInterval), n)
			assert.GreaterOrEqual(t, len(deletions.requests)-requests, int(time.Hour/(slowLookupInterval+slowLookupInterval/5))-1, n)
		}
	})
	t.Run("requests sooner again after a read of /guard/pods", func(t *testing.T) {
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions, vanishing(3)...)
		f.look(time.Hour)
		requests := len(deletions.requests)
		f.watched()
		f.look(lookupInterval + lookupInterval/5)
		assert.GreaterOrEqual(t, len(deletions.requests), requests+1)
	})
	t.Run("holds one after the other bring no more queries on average", func(t *testing.T) {
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions)
		for _, pod := range vanishing(100) {
			f.lose(pod)
			f.look(5 * time.Second)
		}
		assert.LessOrEqual(t, len(deletions.requests), int(500*time.Second/lookupInterval)+lookupBurst+1)
	})
	t.Run("finds what names the node, and what does not", func(t *testing.T) {
		pods := vanishing(9)
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions, pods...)
		deletions.record(pods[3], "node-1")
		deletions.record(pods[7], "")
		assert.Equal(t, []types.UID{"p003-uid"}, f.look(30*time.Second), "by the node")
		assert.Equal(t, []types.UID{"p007-uid"}, f.look(9*singleEvery*12*time.Second), "one by one")
		assert.False(t, f.HoldVanished(apiSource, pods[3]))
		assert.False(t, f.HoldVanished(apiSource, pods[7]))
		assert.True(t, f.HoldVanished(apiSource, pods[0]))
	})
	t.Run("requests the records of the node that the pods were bound to", func(t *testing.T) {
		pods := vanishing(4)
		pods[2].Spec.NodeName, pods[3].Spec.NodeName = "old-name", "old-name"
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions, pods...)
		deletions.record(pods[2], "old-name")
		assert.Equal(t, []types.UID{"p002-uid"}, f.look(time.Minute))
		assert.Subset(t, deletions.requests, []string{"node node-1", "node old-name"})
	})
	t.Run("requests one by one when it cannot list", func(t *testing.T) {
		pods := vanishing(5)
		deletions := &fakeDeletions{listErr: fmt.Errorf("%w: forbidden", ErrDeletionsNotListed)}
		f := lookingUp(t, deletions, pods...)
		deletions.record(pods[4], "node-1")
		assert.Equal(t, []types.UID{"p004-uid"}, f.look(2*time.Minute))
		lists := 0
		for _, about := range deletions.requests {
			if strings.HasPrefix(about, "node") {
				lists++
			}
		}
		assert.Equal(t, 1, lists)
		assert.Zero(t, f.series()["errors_total{operation=PodDeletion}"])
		deletions.listErr, deletions.requests = nil, nil
		f.look(unlistedFor + 10*time.Minute)
		assert.Contains(t, deletions.requests, "node node-1", "the list is tried again")
	})
	t.Run("backs off when there is no response", func(t *testing.T) {
		pods := vanishing(3)
		deletions := &fakeDeletions{err: errors.New("no response")}
		f := lookingUp(t, deletions, pods...)
		f.look(time.Hour)
		requests := len(deletions.requests)
		f.look(time.Hour)
		assert.LessOrEqual(t, len(deletions.requests)-requests, int(time.Hour/maxLookupInterval))
		assert.Equal(t, float64(len(deletions.requests)), f.series()["errors_total{operation=PodDeletion}"])

		deletions.err = nil
		deletions.record(pods[0], "node-1")
		assert.Equal(t, []types.UID{"p000-uid"}, f.look(2*maxLookupInterval))
	})
	t.Run("one query that fails is not the end of the round", func(t *testing.T) {
		pods := vanishing(30)
		deletions := &fakeDeletions{err: errors.New("500")}
		f := lookingUp(t, deletions, pods...)
		deletions.record(pods[29], "node-1")
		f.look(firstLookup + firstLookupSpread)
		require.Len(t, deletions.requests, 1)
		deletions.err = nil
		assert.Equal(t, []types.UID{"p029-uid"}, f.look(2*lookupInterval))
	})
	t.Run("evidence ends the queries", func(t *testing.T) {
		pods := vanishing(1)
		deletions := &fakeDeletions{}
		f := lookingUp(t, deletions, pods...)
		deletions.record(pods[0], "node-1")
		require.Len(t, f.look(time.Minute), 1)
		requests := len(deletions.requests)
		f.look(time.Hour)
		assert.Len(t, deletions.requests, requests)
	})
}

func TestRecordThatIsNoProof(t *testing.T) {
	pod := vanishing(1)[0]
	for name, change := range map[string]func(*DeletionRecord){
		"another kind":       func(r *DeletionRecord) { r.Kind = "Status" },
		"no kind":            func(r *DeletionRecord) { r.TypeMeta.Kind, r.APIVersion = "", "" },
		"another version":    func(r *DeletionRecord) { r.APIVersion = "kubelet-guard.io/v9" },
		"another pod":        func(r *DeletionRecord) { r.Spec.Name = "other" },
		"another namespace":  func(r *DeletionRecord) { r.Spec.Namespace = "other" },
		"no pod":             func(r *DeletionRecord) { r.Spec.Name, r.Spec.Namespace = "", "" },
		"being deleted":      func(r *DeletionRecord) { r.Metadata.DeletionTimestamp = deleted(pod).DeletionTimestamp },
		"the right one":      nil,
		"the UID of another": func(r *DeletionRecord) { r.Metadata.Name = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			record := recordOf(pod)
			if change == nil {
				assert.NoError(t, record.check(pod.Namespace, pod.Name, pod.UID))
				return
			}
			change(record)
			assert.Error(t, record.check(pod.Namespace, pod.Name, pod.UID))
			for _, pods := range [][]*v1.Pod{vanishing(1), vanishing(3)} {
				deletions := &wrongDeletions{record: record}
				f := newFixture(t)
				f.deletions = deletions
				f.lose(pods...)
				assert.Empty(t, f.look(5*time.Minute))
				assert.True(t, f.HoldVanished(apiSource, pods[0]))
			}
		})
	}
}

// wrongDeletions responds to everything with one record.
type wrongDeletions struct{ record *DeletionRecord }

func (d *wrongDeletions) OfNode(context.Context, string) ([]DeletionRecord, error) {
	return []DeletionRecord{*d.record}, nil
}

func (d *wrongDeletions) Of(context.Context, types.UID) (*DeletionRecord, error) {
	return d.record, nil
}

// What a server, or something in its place, returns.
func TestDeletionClient(t *testing.T) {
	pod := vanishing(1)[0]
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":"m","code":%d%s}`
	good := `{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletion","metadata":{"name":"p000-uid"},"spec":{"namespace":"default","name":"p000","nodeName":"node-1"}}`
	for name, test := range map[string]struct {
		code        int
		contentType string
		body        string
		of          string
		ofNode      string
		found       int
	}{
		"a record":          {code: 200, body: good, ofNode: "not PodDeletionList in"},
		"a list":            {code: 200, body: `{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletionList","items":[` + good + `]}`, of: "check", found: 1},
		"an empty list":     {code: 200, body: `{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletionList","items":[]}`, of: "check"},
		"a list of pods":    {code: 200, body: `{"apiVersion":"v1","kind":"PodList","items":[` + good + `]}`, of: "check", ofNode: `"PodList" in "v1"`},
		"a page":            {code: 200, contentType: "text/html", body: "<html>maintenance</html>", of: "no PodDeletion", ofNode: "no list of PodDeletions"},
		"a page as JSON":    {code: 200, body: "<html>maintenance</html>", of: "no PodDeletion", ofNode: "no list of PodDeletions"},
		"nothing":           {code: 200, body: "", of: "no PodDeletion", ofNode: "no list of PodDeletions"},
		"accepted":          {code: 202, body: `{}`, of: "check", ofNode: "not PodDeletionList in"},
		"a pod":             {code: 200, body: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p000-uid"}}`, of: "check", ofNode: "not PodDeletionList in"},
		"not found":         {code: 404, body: fmt.Sprintf(status, "NotFound", 404, ""), of: "none", ofNode: ErrDeletionsUnknown.Error()},
		"forbidden":         {code: 403, body: fmt.Sprintf(status, "Forbidden", 403, ""), of: "m", ofNode: ErrDeletionsNotListed.Error()},
		"no such field":     {code: 400, body: fmt.Sprintf(status, "BadRequest", 400, ""), of: "m", ofNode: ErrDeletionsNotListed.Error()},
		"an internal error": {code: 500, body: fmt.Sprintf(status, "InternalError", 500, ""), of: "m", ofNode: "m"},
		"a busy server":     {code: 429, body: fmt.Sprintf(status, "TooManyRequests", 429, `,"details":{"retryAfterSeconds":1}`), of: "m", ofNode: "m"},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				assert.Equal(t, "application/json", r.Header.Get("Accept"))
				if strings.HasSuffix(r.URL.Path, "/poddeletions") {
					assert.Equal(t, "spec.nodeName=node-1", r.URL.Query().Get("fieldSelector"))
					assert.Equal(t, "0", r.URL.Query().Get("resourceVersion"))
				}
				contentType := "application/json"
				if test.contentType != "" {
					contentType = test.contentType
				}
				w.Header().Set("Content-Type", contentType)
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(test.code)
				_, _ = w.Write([]byte(test.body))
			}))
			defer server.Close()
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"}})
			require.NoError(t, err)
			deletions := NewDeletions(client.CoreV1().RESTClient())

			record, err := deletions.Of(t.Context(), pod.UID)
			switch test.of {
			case "":
				require.NoError(t, err)
				assert.NoError(t, record.check(pod.Namespace, pod.Name, pod.UID))
			case "check":
				require.NoError(t, err)
				assert.Error(t, record.check(pod.Namespace, pod.Name, pod.UID))
			case "none":
				require.NoError(t, err)
				assert.Nil(t, record)
			default:
				assert.ErrorContains(t, err, test.of)
			}
			records, err := deletions.OfNode(t.Context(), "node-1")
			if test.ofNode == "" {
				require.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, test.ofNode)
			}
			assert.Len(t, records, test.found)
			assert.Equal(t, 2, requests, "one attempt each")
		})
	}
}

// A server that hangs keeps neither release files nor the end of Run waiting.
func TestHangingLookUp(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		config := DefaultConfiguration()
		config.StateDir = dir
		runtime := newFakeRuntime()
		deletions := &fakeDeletions{hang: true}
		g, err := New(Dependencies{Configuration: config, NodeName: "node-1", Runtime: runtime, Deletions: deletions, Clock: clock.RealClock{}})
		require.NoError(t, err)
		f := &fixture{Guard: g, t: t, runtime: runtime, events: &fakeEvents{}}
		ctx, cancel := context.WithCancel(t.Context())
		pods := vanishing(3)
		f.lose(pods...)
		released := make(chan types.UID, 10)
		go f.Run(ctx, func(uid types.UID, ended bool) {
			if ended {
				released <- uid
			}
		})
		time.Sleep(firstLookup + firstLookupSpread + time.Millisecond)
		synctest.Wait()
		require.Len(t, deletions.requests, 1)
		require.NoError(t, os.WriteFile(filepath.Join(releaseDir(f.stateDir), string(pods[0].UID)), nil, 0o600))
		start := time.Now()
		assert.Equal(t, pods[0].UID, <-released)
		assert.LessOrEqual(t, time.Since(start), tidyInterval)
		cancel()
	})
}

// The loop of Run finds a record, and makes no more requests when all are found.
func TestRunLooksUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runtime := newFakeRuntime()
		pods := vanishing(2)
		deletions := &fakeDeletions{}
		deletions.record(pods[0], "node-1")
		deletions.record(pods[1], "node-1")
		g, err := New(Dependencies{Configuration: DefaultConfiguration(), NodeName: "node-1", Runtime: runtime, Deletions: deletions, Clock: clock.RealClock{}})
		require.NoError(t, err)
		f := &fixture{Guard: g, t: t, runtime: runtime, events: &fakeEvents{}}
		ctx, cancel := context.WithCancel(t.Context())
		released := make(chan types.UID, 10)
		go f.Run(ctx, func(uid types.UID, ended bool) {
			if ended {
				released <- uid
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Empty(t, deletions.requests)
		f.lose(pods...)
		assert.ElementsMatch(t, []types.UID{"p000-uid", "p001-uid"}, []types.UID{<-released, <-released})
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Len(t, deletions.requests, 1)
		cancel()
	})
}
