package access

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/dataprotection/check"
	"kubelet-guard.io/pkg/dataprotection/check/checktest"
	"kubelet-guard.io/pkg/dataprotection/deletions"
)

func TestAnonymousConnections(t *testing.T) {
	t.Parallel()
	serve := func(auth tls.ClientAuthType) *httptest.Server {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{ClientAuth: auth}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	open, closed := serve(tls.NoClientCert), serve(tls.RequireAndVerifyClientCert)
	trust := func(s *httptest.Server) *tls.Config {
		return s.Client().Transport.(*http.Transport).TLSClientConfig
	}
	p := ProbeAnonymous(t.Context(), open.URL, trust(open))
	require.True(t, p.Reached, "%v", p.Err)
	p = ProbeAnonymous(t.Context(), closed.URL, trust(closed))
	require.False(t, p.Reached)
	require.True(t, p.Refused, "%v", p.Err)
	p = ProbeAnonymous(t.Context(), closed.URL, nil)
	require.False(t, p.Reached)
	require.False(t, p.Refused, "its certificate is not trusted here: nothing is known about clients: %v", p.Err)

	plain := httptest.NewServer(http.NotFoundHandler())
	p = ProbeAnonymous(t.Context(), plain.URL, nil)
	require.True(t, p.Reached)
	plain.Close()
	p = ProbeAnonymous(t.Context(), plain.URL, nil)
	require.False(t, p.Reached || p.Refused)
}

var now = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// closedEtcd is one that follows the recipe.
func closedEtcd() *Facts {
	refused := errors.New("refused")
	return &Facts{
		Now: now, Members: []check.Member{{Endpoint: "https://etcd", Version: "3.6.16"}},
		Anonymous:    []Probe{{Name: "https://etcd", Refused: true, Err: refused}},
		Certificates: []Probe{{Name: "healthcheck-client.crt", Refused: true, Err: refused}},
		AuthEnabled:  true, RootUsers: []string{"root"}, MetricsURLs: []string{"http://127.0.0.1:2381"},
		Files: []File{{Path: "key", Mode: 0o600}}, History: &deletions.Log{Since: ptr.To(now.Add(-30 * time.Minute))},
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range Judge(closedEtcd()) {
		require.Equal(t, check.OK, c.Result, "%+v", c)
	}
	require.Len(t, Judge(closedEtcd()), 8)
	young := closedEtcd()
	young.History.Oldest, young.History.Since = 1, nil // no lease is that old
	require.Equal(t, -1, slices.IndexFunc(Judge(young), func(c check.Check) bool { return c.Result != check.OK }), "never compacted")
	failure := errors.New("no such thing")
	for _, test := range []struct {
		name   string
		change func(*Facts)
		check  string
		result check.Result
		words  string
	}{
		{"open to all", func(f *Facts) { f.Anonymous[0] = Probe{Name: "https://etcd", Reached: true} }, "without a certificate", check.Problem, "https://etcd is accepted"},
		{"not reached", func(f *Facts) { f.Anonymous[0] = Probe{Err: failure} }, "without a certificate", check.Unknown, failure.Error()},
		{"open to another certificate", func(f *Facts) { f.Certificates[0].Reached = true }, "other certificates", check.Problem, "healthcheck-client.crt is accepted"},
		{"no authentication", func(f *Facts) { f.AuthEnabled = false }, "authentication", check.Warning, "it is off"},
		{"unknown authentication", func(f *Facts) { f.AuthErr = failure }, "authentication", check.Unknown, failure.Error()},
		{"two roots", func(f *Facts) { f.RootUsers = append(f.RootUsers, "ops") }, "role root", check.Warning, "root, ops"},
		{"unknown roots", func(f *Facts) { f.RootErr = failure }, "role root", check.Unknown, failure.Error()},
		{"open metrics", func(f *Facts) { f.MetricsURLs = []string{"http://0.0.0.0:2381"} }, "metrics", check.Warning, "0.0.0.0"},
		{"no manifest", func(f *Facts) { f.ManifestErr = failure }, "metrics", check.Unknown, failure.Error()},
		{"a readable key", func(f *Facts) { f.Files[0].Mode = 0o640 }, "files", check.Problem, "0640"},
		{"an absent key", func(f *Facts) { f.Files[0].Err = failure }, "files", check.Unknown, failure.Error()},
		{"a short history", func(f *Facts) { f.History.Since = ptr.To(now.Add(-time.Minute)) }, "history", check.Warning, "1m0s"},
		{"no history", func(f *Facts) { f.History, f.HistoryErr = nil, failure }, "history", check.Unknown, failure.Error()},
	} {
		facts := closedEtcd()
		test.change(facts)
		checktest.RequireOnly(t, Judge(facts), test.check, test.result, test.words, test.name)
	}
}

// denying responds to a client whose user has not the role root.
type denying struct{ pb.UnimplementedAuthServer }

func (denying) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return nil, rpctypes.ErrGRPCPermissionDenied
}

func (denying) UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return nil, rpctypes.ErrGRPCPermissionDenied
}

func TestADeniedReadOfTheAuthenticationShowsThatItIsOn(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	pb.RegisterAuthServer(server, denying{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{listener.Addr().String()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	f := &Facts{}
	f.ReadAuth(t.Context(), client)
	require.NoError(t, f.AuthErr)
	require.True(t, f.AuthEnabled)
	require.ErrorContains(t, f.RootErr, "permission denied")
}
