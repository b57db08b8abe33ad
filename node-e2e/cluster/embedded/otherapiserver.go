package embedded

import (
	"context"
	"errors"
	"net"
)

// programOtherAPIServer is the name of the second API server among the components, and
// of its log.
const programOtherAPIServer = "kube-apiserver-other"

// OtherAPIServer is a second kube-apiserver next to the cluster's own, on the same etcd,
// which it reaches through a link that can be cut. What it is asked then it answers from
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
