package admission

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
)

// CacheAge measures how long ago each cache last heard from the API server. A watch
// without events still sends a bookmark about once a minute, so that a
// cache whose age exceeds a few minutes is one that has lost its watch, and the
// rules that read it judge by old objects.
//
// It listens to the watch streams themselves, because an informer shows neither
// bookmarks nor a stream that is silent.
type CacheAge struct {
	clock  clock.PassiveClock
	metric *prometheus.Desc

	mu sync.Mutex
	// heard holds the time of the last read in nanoseconds since the epoch, by
	// resource, 0 before the first watch. Only the leader watches some resources, and
	// a replica whose caches never filled is not ready; neither has an age. Resources
	// are those of which this process keeps caches, so the label is closed.
	heard map[string]*atomic.Int64
}

// NewCacheAge registers the metric, with a series for each of the resources
// ("pods", "poddisruptionbudgets.policy"). Others get theirs with their first watch.
func NewCacheAge(registerer prometheus.Registerer, clock clock.PassiveClock, resources ...string) (*CacheAge, error) {
	c := &CacheAge{
		clock: clock,
		metric: prometheus.NewDesc(CacheAgeMetric,
			"Seconds since the watch of the resource last brought an event or a bookmark; 0 before its first watch.",
			[]string{"resource"}, nil),
		heard: map[string]*atomic.Int64{},
	}
	for _, resource := range resources {
		c.of(resource)
	}
	return c, registerer.Register(c)
}

// Describe implements prometheus.Collector.
func (c *CacheAge) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- c.metric }

// Collect implements prometheus.Collector.
func (c *CacheAge) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for resource, heard := range c.heard {
		var age time.Duration
		if at := heard.Load(); at != 0 {
			age = c.clock.Since(time.Unix(0, at))
		}
		metrics <- prometheus.MustNewConstMetric(c.metric, prometheus.GaugeValue, age.Seconds(), resource)
	}
}

func (c *CacheAge) of(resource string) *atomic.Int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.heard[resource]
	if heard == nil {
		heard = &atomic.Int64{}
		c.heard[resource] = heard
	}
	return heard
}

// Wrap returns a transport that listens to the watches it carries. It is for
// rest.Config.Wrap.
func (c *CacheAge) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err != nil || response.StatusCode != http.StatusOK || !isWatch(request) {
			return response, err
		}
		if resource := watchedResource(request.URL.Path); resource != "" {
			heard := c.of(resource)
			heard.Store(c.clock.Now().UnixNano())
			response.Body = &heardBody{ReadCloser: response.Body, clock: c.clock, heard: heard}
		}
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

// heardBody notes when something was read.
type heardBody struct {
	io.ReadCloser
	clock clock.PassiveClock
	heard *atomic.Int64
}

func (b *heardBody) Read(into []byte) (int, error) {
	n, err := b.ReadCloser.Read(into)
	if n > 0 {
		b.heard.Store(b.clock.Now().UnixNano())
	}
	return n, err
}

func isWatch(request *http.Request) bool {
	watch := request.URL.Query().Get("watch")
	return watch == "true" || watch == "1"
}

// watchedResource returns the resource of a path such as
// /apis/policy/v1/namespaces/shop/poddisruptionbudgets, with its group:
// "poddisruptionbudgets.policy". It is empty for other paths.
func watchedResource(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := ""
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		group, parts = parts[1], parts[3:]
	default:
		return ""
	}
	if len(parts) == 3 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	if len(parts) != 1 {
		return ""
	}
	if group != "" {
		return parts[0] + "." + group
	}
	return parts[0]
}
