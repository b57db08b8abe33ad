package embedded

import (
	"context"
	"errors"
	"net"
	"sync"
)

// Link passes on connections to the API server and can be cut, as testnode.Link says: an
// end of a connection does not pass then either. New connections are accepted at all times
// and wait while it is cut.
//
// A Link works in this program: a kubelet that uses it is cut off for good when the
// program ends. Its methods may be called concurrently.
type Link struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu sync.Mutex
	// open is closed while the link passes.
	open chan struct{}
	// ends are the connections of both sides; nil once the link is closed.
	ends map[net.Conn]struct{}
}

// NewLink makes a link to the cluster's API server, for a kubelet to be started with.
// The caller closes it.
func (c *Cluster) NewLink() (*Link, error) {
	return newLink(net.JoinHostPort(c.NodeIP(), "0"), net.JoinHostPort(c.NodeIP(), apiServerPort))
}

func newLink(listen, target string) (*Link, error) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	l := &Link{listener: listener, target: target, open: make(chan struct{}), ends: map[net.Conn]struct{}{}}
	close(l.open)
	l.running.Go(l.serve)
	return l, nil
}

// URL is the API server's URL through the link.
func (l *Link) URL() string { return "https://" + l.listener.Addr().String() }

// Cut stops everything. A link that is cut stays so.
func (l *Link) Cut() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		l.open = make(chan struct{})
	default:
	}
	return nil
}

// Restore lets pass what waits and what comes.
func (l *Link) Restore() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
	default:
		close(l.open)
	}
	return nil
}

// Reset ends all connections. What was on the way is lost, as it is when a network
// is away for longer than both sides repeat what they sent.
func (l *Link) Reset() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resetLocked()
}

func (l *Link) resetLocked() error {
	var errs []error
	for end := range l.ends {
		errs = append(errs, end.Close())
		delete(l.ends, end)
	}
	return errors.Join(errs...)
}

// Close ends all connections and returns when nothing of the link is left.
func (l *Link) Close() error {
	err := l.listener.Close()
	l.mu.Lock()
	err = errors.Join(err, l.resetLocked())
	l.ends = nil
	l.mu.Unlock()
	err = errors.Join(err, l.Restore())
	l.running.Wait()
	return err
}

func (l *Link) serve() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return // closed
		}
		if l.keep(near) {
			l.running.Go(func() { l.connect(near) })
		}
	}
}

// connect joins an accepted connection to one of its own to the target.
func (l *Link) connect(near net.Conn) {
	defer l.drop(near)
	l.awaitOpen()
	far, err := net.Dial("tcp", l.target)
	if err != nil || !l.keep(far) {
		return
	}
	l.running.Go(func() {
		defer l.drop(near)
		l.pass(near, far)
	})
	defer l.drop(far)
	l.pass(far, near)
}

// pass copies until one side ends, and holds on to what it has read, or to the end,
// while the link is cut.
func (l *Link) pass(from, to net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		// A reset in the meantime has closed both sides.
		l.awaitOpen()
		if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
			return
		}
	}
}

func (l *Link) awaitOpen() {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	<-open
}

// keep takes note of a connection, or closes it when the link is closed.
func (l *Link) keep(end net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ends == nil {
		_ = end.Close()
		return false
	}
	l.ends[end] = struct{}{}
	return true
}

func (l *Link) drop(end net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, kept := l.ends[end]; kept {
		delete(l.ends, end)
		_ = end.Close()
	}
}

// programOtherAPIServer is the name of the second API server among the components, and
// of its log.
const programOtherAPIServer = "kube-apiserver-other"

// OtherAPIServer is a second kube-apiserver next to the cluster's own, on the same etcd,
// which it reaches through a link that can be cut. It responds then from
// its watch cache, as far as the question allows that.
type OtherAPIServer struct {
	*Component
	storage *Link
}

// StartOtherAPIServer starts it and returns when it is ready. The caller stops it.
func (c *Cluster) StartOtherAPIServer(ctx context.Context) (*OtherAPIServer, error) {
	storage, err := newLink(net.JoinHostPort(c.NodeIP(), "0"), net.JoinHostPort(c.NodeIP(), etcdClientPort))
	if err != nil {
		return nil, err
	}
	other := &OtherAPIServer{storage: storage, Component: &Component{
		cluster: c,
		name:    programOtherAPIServer,
		prepare: func() (launch, error) {
			l, err := c.prepareAPIServer(otherAPIServerPort, storage.URL())
			// The addresses of the service kubernetes are the first one's.
			l.args = append(l.args, "--endpoint-reconciler-type=none")
			return l, err
		},
		healthy:  func(ctx context.Context) error { return c.getOK(ctx, c.url("https", otherAPIServerPort)+"/readyz") },
		patience: apiServerTermPatience,
	}}
	if err := other.Start(ctx); err != nil {
		return nil, errors.Join(err, other.Stop(context.WithoutCancel(ctx)))
	}
	return other, nil
}

// Cut stops everything between it and etcd, and Restore lets it pass again.
func (s *OtherAPIServer) Cut() error     { return s.storage.Cut() }
func (s *OtherAPIServer) Restore() error { return s.storage.Restore() }

// Stop ends it.
func (s *OtherAPIServer) Stop(ctx context.Context) error {
	if err := s.Component.Stop(ctx); err != nil {
		return err
	}
	return errors.Join(s.storage.Close(), s.cluster.forget(s.name))
}
