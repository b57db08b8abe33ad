package webhookscale

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// review is one of the deletion of an object, as an API server sends it.
func review(t *testing.T, kind, resource string, object metav1.Object, user string, dryRun bool) []byte {
	t.Helper()
	raw, err := json.Marshal(object)
	require.NoError(t, err)
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: types.UID("5a0a3e0e-3f0a-4f5e-9c0a-000000000000"), Operation: admissionv1.Delete, Namespace: object.GetNamespace(), Name: object.GetName(), DryRun: ptr.To(dryRun),
			Kind: metav1.GroupVersionKind{Version: "v1", Kind: kind}, Resource: metav1.GroupVersionResource{Version: "v1", Resource: resource},
			UserInfo:  authenticationv1.UserInfo{Username: user, Groups: []string{"system:authenticated"}},
			OldObject: runtime.RawExtension{Raw: raw},
			Options:   runtime.RawExtension{Raw: []byte(`{"kind":"DeleteOptions","apiVersion":"meta.k8s.io/v1"}`)},
		},
	})
	require.NoError(t, err)
	return body
}

// client returns one connection to the replica, with the certificate of a caller.
func (r *replica) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: r.tls, MaxIdleConnsPerHost: 1}}
}

// review posts a review and returns whether it may pass.
func (r *replica) review(ctx context.Context, client *http.Client, path string, body []byte) (bool, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return false, err
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(content, &answer); err != nil || answer.Response == nil {
		return false, fmt.Errorf("status %d: %s", response.StatusCode, content)
	}
	return answer.Response.Allowed, nil
}

// latencies are of the reviews of some time.
type latencies struct {
	clients   int
	perSecond float64
	p50, p99  time.Duration
}

// load has so many clients post reviews, one after the other each, and takes the times from
// the clients. With a rate, all together start so many a second, in even steps; without one,
// each starts the next when it has a response.
func (r *replica) load(t *testing.T, clients int, rate float64, bodies [][]byte, duration time.Duration) latencies {
	t.Helper()
	var (
		wait   sync.WaitGroup
		mu     sync.Mutex
		all    []time.Duration
		failed error
	)
	ready, start := make(chan struct{}, clients), make(chan time.Time)
	for c := range clients {
		wait.Go(func() {
			client := r.client()
			defer client.CloseIdleConnections()
			// The first connects.
			_, err := r.review(t.Context(), client, "/validate/pod-deletion", bodies[c%len(bodies)])
			ready <- struct{}{}
			end := <-start
			var own []time.Duration
			turn, pause := time.Now(), time.Duration(0)
			if rate > 0 {
				pause = time.Duration(float64(clients) / rate * float64(time.Second))
				turn = turn.Add(pause * time.Duration(c) / time.Duration(clients))
			}
			for i := c; err == nil && time.Now().Before(end); i += clients {
				// From its turn: a client that is late has waited for the replica.
				time.Sleep(time.Until(turn))
				started := time.Now()
				if pause > 0 {
					started, turn = turn, turn.Add(pause)
				}
				var allowed bool
				allowed, err = r.review(t.Context(), client, "/validate/pod-deletion", bodies[i%len(bodies)])
				own = append(own, time.Since(started))
				if err == nil && !allowed {
					err = fmt.Errorf("review %d is refused", i%len(bodies))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
			if err != nil {
				failed = err
			}
		})
	}
	for range clients {
		<-ready
	}
	end := time.Now().Add(duration)
	for range clients {
		start <- end
	}
	wait.Wait()
	require.NoError(t, failed)
	slices.Sort(all)
	return latencies{clients: clients, perSecond: float64(len(all)) / duration.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100]}
}
