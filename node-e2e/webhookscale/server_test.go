package webhookscale

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// server responds to guard-webhook as an API server does, in the same format: protobuf for
// Kubernetes' own kinds and for metadata, JSON for custom resources. Objects are made when
// they are sent, so that a large cluster costs this process little memory.
type server struct {
	*httptest.Server
	t testing.TB
	// streams reports whether lists may be streamed (the feature WatchList of an API server).
	streams   bool
	resources []*collection

	mu sync.Mutex
	// policy is the one NodeDeletionPolicy, which is written.
	policy *guardv1alpha1.NodeDeletionPolicy
	// broken is closed to end all watches as those of an API server that has forgotten their
	// version.
	broken chan struct{}
	// complete counts lists that were sent to their end, by resource.
	complete map[string]int
	// pages counts responses to lists, most is the number of objects in the largest.
	pages, most int
}

// collection is a kind with its objects.
type collection struct {
	gv               schema.GroupVersion
	name, kind       string
	namespaced       bool
	count            func() int
	object           func(i int) runtime.Object
	list             func() runtime.Object
	watchers         map[chan runtime.Object]bool
	isCustomResource bool
}

func (r *collection) path() string {
	if r.gv.Group == "" {
		return "/api/" + r.gv.Version + "/" + r.name
	}
	return "/apis/" + r.gv.String() + "/" + r.name
}

var (
	objects     = runtime.NewScheme()
	codecs      = serializer.NewCodecFactory(objects)
	protobuf, _ = runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	plain, _    = runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{admissionregistrationv1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme, guardv1alpha1.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(objects); err != nil {
			panic(err)
		}
	}
	metav1.AddToGroupVersion(objects, schema.GroupVersion{Version: "v1"})
}

func newServer(t testing.TB, s size, streams bool) *server {
	of := func(n int) func() int { return func() int { return n } }
	srv := &server{t: t, streams: streams, policy: s.policy(), broken: make(chan struct{}), complete: map[string]int{}}
	core, policy, guard := corev1.SchemeGroupVersion, policyv1.SchemeGroupVersion, guardv1alpha1.GroupVersion
	registration := admissionregistrationv1.SchemeGroupVersion
	policies := 1
	if s.deletions == 0 {
		policies = 0
	}
	srv.resources = []*collection{
		{gv: core, name: "pods", kind: "Pod", namespaced: true, count: of(s.pods), object: func(i int) runtime.Object { return s.pod(i) }, list: func() runtime.Object { return &corev1.PodList{} }},
		{gv: core, name: "nodes", kind: "Node", count: of(s.nodes), object: func(i int) runtime.Object { return s.node(i) }, list: func() runtime.Object { return &corev1.NodeList{} }},
		{gv: core, name: "namespaces", kind: "Namespace", count: of(s.namespaces), object: func(i int) runtime.Object { return s.namespace(i) }, list: func() runtime.Object { return &corev1.NamespaceList{} }},
		{gv: policy, name: "poddisruptionbudgets", kind: "PodDisruptionBudget", namespaced: true, count: of(s.budgets), object: func(i int) runtime.Object { return s.budget(i) }, list: func() runtime.Object { return &policyv1.PodDisruptionBudgetList{} }},
		// The webhook is not registered here, but a replica that cannot list what is ends itself.
		{gv: registration, name: "validatingwebhookconfigurations", kind: "ValidatingWebhookConfiguration", count: of(0), list: func() runtime.Object { return &admissionregistrationv1.ValidatingWebhookConfigurationList{} }},
		{gv: guard, name: "nodedeletionpolicies", kind: "NodeDeletionPolicy", count: of(policies), isCustomResource: true, object: func(int) runtime.Object { return srv.currentPolicy() }, list: func() runtime.Object { return &guardv1alpha1.NodeDeletionPolicyList{} }},
		{gv: guard, name: "operationwindows", kind: "OperationWindow", namespaced: true, count: of(0), isCustomResource: true, list: func() runtime.Object { return &guardv1alpha1.OperationWindowList{} }},
		{gv: guard, name: "poddeletions", kind: "PodDeletion", count: of(0), isCustomResource: true, list: func() runtime.Object { return &guardv1alpha1.PodDeletionList{} }},
	}
	mux := http.NewServeMux()
	for _, r := range srv.resources {
		r.watchers = map[chan runtime.Object]bool{}
		mux.HandleFunc("GET "+r.path(), func(w http.ResponseWriter, q *http.Request) { srv.listOrWatch(w, q, r) })
	}
	mux.HandleFunc("GET /apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}", func(w http.ResponseWriter, q *http.Request) {
		var i int
		if _, err := fmt.Sscanf(q.PathValue("name"), "some-service-%d", &i); err != nil {
			http.NotFound(w, q)
			return
		}
		srv.write(w, q, s.budget(i))
	})
	const policyPath = "/apis/kubelet-guard.io/v1alpha1/nodedeletionpolicies/all"
	mux.HandleFunc("GET "+policyPath, func(w http.ResponseWriter, q *http.Request) { srv.write(w, q, srv.currentPolicy()) })
	mux.HandleFunc("PATCH "+policyPath+"/status", srv.patchPolicy)
	mux.HandleFunc("PUT "+policyPath+"/status", srv.putPolicy)
	mux.HandleFunc("GET /api", func(w http.ResponseWriter, q *http.Request) {
		srv.write(w, q, &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	})
	mux.HandleFunc("GET /apis", func(w http.ResponseWriter, q *http.Request) {
		list := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		for _, gv := range []schema.GroupVersion{policy, registration, guard} {
			list.Groups = append(list.Groups, groupOf(gv))
		}
		srv.write(w, q, list)
	})
	for _, gv := range []schema.GroupVersion{core, policy, registration, guard} {
		path := "/api/v1"
		if gv.Group != "" {
			path = "/apis/" + gv.String()
			mux.HandleFunc("GET /apis/"+gv.Group, func(w http.ResponseWriter, q *http.Request) {
				group := groupOf(gv)
				group.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
				srv.write(w, q, &group)
			})
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, q *http.Request) {
			list := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
			for _, r := range srv.resources {
				if r.gv == gv {
					list.APIResources = append(list.APIResources, metav1.APIResource{Name: r.name, SingularName: strings.ToLower(r.kind), Kind: r.kind, Namespaced: r.namespaced, Verbs: metav1.Verbs{"get", "list", "watch", "update", "patch"}})
				}
			}
			srv.write(w, q, list)
		})
	}
	mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }) // events
	srv.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv
}

func groupOf(gv schema.GroupVersion) metav1.APIGroup {
	version := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
	return metav1.APIGroup{Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version}
}

func (s *server) currentPolicy() *guardv1alpha1.NodeDeletionPolicy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy.DeepCopy()
}

// lists returns how often each resource was sent to its end.
func (s *server) lists() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.complete)
}

// watched reports whether there is a watch of the resource.
func (s *server) watched(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.resources, func(r *collection) bool { return r.name == name && len(r.watchers) > 0 })
}

// breakWatches ends them with 410 Gone.
func (s *server) breakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.broken)
	s.broken = make(chan struct{})
}

func (s *server) listOrWatch(w http.ResponseWriter, q *http.Request, r *collection) {
	query := q.URL.Query()
	switch {
	case query.Get("watch") == "true" && query.Get("sendInitialEvents") == "true" && !s.streams:
		s.fail(w, q, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", nil))
	case query.Get("watch") == "true":
		s.watch(w, q, r, query.Get("sendInitialEvents") == "true")
	default:
		s.list(w, q, r)
	}
}

// list responds with a page, or with everything when a version is given: that is the response
// of a watch cache, which has no pages.
func (s *server) list(w http.ResponseWriter, q *http.Request, r *collection) {
	query := q.URL.Query()
	from, limit := 0, r.count()
	if n, err := strconv.Atoi(query.Get("limit")); err == nil && query.Get("resourceVersion") == "" {
		limit = n
	}
	if text := query.Get("continue"); text != "" {
		from, _ = strconv.Atoi(text)
	}
	to := min(from+limit, r.count())
	list := r.list()
	if wantsMetadata(q) {
		list = &metav1.PartialObjectMetadataList{}
	}
	var items []runtime.Object
	for i := from; i < to; i++ {
		items = append(items, s.shown(q, r.object(i)))
	}
	if err := meta.SetList(list, items); err != nil {
		s.t.Errorf("list %s: %v", r.name, err)
	}
	accessor, _ := meta.ListAccessor(list)
	accessor.SetResourceVersion("9000000")
	if to < r.count() {
		accessor.SetContinue(strconv.Itoa(to))
	}
	if r.isCustomResource {
		list.GetObjectKind().SetGroupVersionKind(r.gv.WithKind(r.kind + "List"))
	}
	s.write(w, q, list)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages++
	s.most = max(s.most, len(items))
	if to == r.count() {
		s.complete[r.name]++
	}
}

const sendAtOnce = 64 << 10

func (s *server) watch(w http.ResponseWriter, q *http.Request, r *collection, initial bool) {
	s.mu.Lock()
	broken, changes := s.broken, make(chan runtime.Object, 100)
	r.watchers[changes] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(r.watchers, changes)
	}()
	info, contentType := s.negotiate(q)
	if info.MediaType == runtime.ContentTypeProtobuf {
		contentType += ";stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	var frames bytes.Buffer
	flush := func() bool {
		_, err := w.Write(frames.Bytes())
		frames.Reset()
		w.(http.Flusher).Flush()
		return err == nil
	}
	framer := info.StreamSerializer.Framer.NewFrameWriter(&frames)
	send := func(kind watch.EventType, object runtime.Object) {
		event := &metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: s.encode(info, object)}}
		if err := info.StreamSerializer.Encode(event, framer); err != nil {
			s.t.Errorf("watch %s: %v", r.name, err)
		}
	}
	if initial {
		for i := range r.count() {
			send(watch.Added, s.shown(q, r.object(i)))
			if frames.Len() > sendAtOnce && !flush() {
				return
			}
		}
		mark := r.emptyObject(q)
		accessor, _ := meta.Accessor(mark)
		accessor.SetResourceVersion("9000000")
		accessor.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		send(watch.Bookmark, mark)
		if !flush() {
			return
		}
		s.mu.Lock()
		s.complete[r.name]++
		s.mu.Unlock()
	}
	for flush() {
		select {
		case <-q.Context().Done():
			return
		case <-broken:
			expired := apierrors.NewResourceExpired("too old resource version").Status()
			send(watch.Error, &expired)
			flush()
			return
		case object := <-changes:
			send(watch.Modified, s.shown(q, object))
		}
	}
}

func (r *collection) emptyObject(q *http.Request) runtime.Object {
	object, err := objects.New(r.gv.WithKind(r.kind))
	if err != nil {
		panic(err)
	}
	if wantsMetadata(q) {
		object = &metav1.PartialObjectMetadata{}
	}
	if r.isCustomResource {
		object.GetObjectKind().SetGroupVersionKind(r.gv.WithKind(r.kind))
	}
	return object
}

func wantsMetadata(q *http.Request) bool {
	return strings.Contains(q.Header.Get("Accept"), "as=PartialObjectMetadata")
}

// shown is the object, or its metadata where that is requested.
func (s *server) shown(q *http.Request, object runtime.Object) runtime.Object {
	if !wantsMetadata(q) {
		return object
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return object
	}
	partial := meta.AsPartialObjectMetadata(accessor)
	return partial
}

func (s *server) negotiate(q *http.Request) (runtime.SerializerInfo, string) {
	if strings.Contains(q.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		return protobuf, runtime.ContentTypeProtobuf
	}
	return plain, runtime.ContentTypeJSON
}

func (s *server) encode(info runtime.SerializerInfo, object runtime.Object) []byte {
	gv := schema.GroupVersion{Version: "v1"}
	if kinds, _, err := objects.ObjectKinds(object); err == nil {
		gv = kinds[0].GroupVersion()
	}
	raw, err := runtime.Encode(codecs.EncoderForVersion(info.Serializer, gv), object)
	if err != nil {
		s.t.Errorf("encode %T: %v", object, err)
	}
	return raw
}

func (s *server) write(w http.ResponseWriter, q *http.Request, object runtime.Object) {
	s.writeStatus(w, q, http.StatusOK, s.shown(q, object))
}

func (s *server) writeStatus(w http.ResponseWriter, q *http.Request, code int, object runtime.Object) {
	info, contentType := s.negotiate(q)
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	_, _ = w.Write(s.encode(info, object))
}

func (s *server) fail(w http.ResponseWriter, q *http.Request, err *apierrors.StatusError) {
	status := err.Status()
	s.writeStatus(w, q, int(status.Code), &status)
}

// putPolicy writes the status as the status controller does.
func (s *server) putPolicy(w http.ResponseWriter, q *http.Request) {
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	if err := json.NewDecoder(q.Body).Decode(policy); err != nil {
		s.t.Errorf("PUT of the policy: %v", err)
	}
	s.writePolicy(w, q, policy.ResourceVersion, func(current *guardv1alpha1.NodeDeletionPolicy) { current.Status = policy.Status })
}

// patchPolicy writes a JSON patch of the ledger.
func (s *server) patchPolicy(w http.ResponseWriter, q *http.Request) {
	raw, _ := io.ReadAll(q.Body)
	var operations []struct {
		Op, Path string
		Value    json.RawMessage
	}
	if err := json.Unmarshal(raw, &operations); err != nil {
		s.t.Errorf("PATCH of the policy: %v", err)
	}
	version := ""
	for _, operation := range operations {
		if operation.Path == "/metadata/resourceVersion" {
			_ = json.Unmarshal(operation.Value, &version)
		}
	}
	s.writePolicy(w, q, version, func(current *guardv1alpha1.NodeDeletionPolicy) {
		for _, operation := range operations {
			i, err := strconv.Atoi(strings.TrimPrefix(operation.Path, "/status/deletions/"))
			if err != nil {
				continue
			}
			if operation.Op == "remove" {
				current.Status.Deletions = slices.Delete(current.Status.Deletions, i, i+1)
				continue
			}
			var deletion guardv1alpha1.NodeDeletion
			if err := json.Unmarshal(operation.Value, &deletion); err != nil {
				s.t.Errorf("PATCH of the policy: %v", err)
			}
			current.Status.Deletions = slices.Insert(current.Status.Deletions, i, deletion)
		}
	})
}

func (s *server) writePolicy(w http.ResponseWriter, q *http.Request, version string, change func(*guardv1alpha1.NodeDeletionPolicy)) {
	s.mu.Lock()
	if version != s.policy.ResourceVersion {
		s.mu.Unlock()
		s.fail(w, q, apierrors.NewConflict(guardv1alpha1.Resource("nodedeletionpolicies"), "all", nil))
		return
	}
	policy := s.policy.DeepCopy()
	change(policy)
	number, _ := strconv.Atoi(version)
	policy.ResourceVersion = strconv.Itoa(number + 1)
	s.policy = policy
	for _, r := range s.resources {
		if r.name == "nodedeletionpolicies" {
			for watcher := range r.watchers {
				watcher <- policy
			}
		}
	}
	s.mu.Unlock()
	s.write(w, q, policy)
}
