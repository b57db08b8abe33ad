// Package access probes who can read an etcd besides the API server, and judges what it finds. It
// never writes: it connects, reads one key without its value, and reads etcd's own settings.
package access

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/pkg/dataprotection/check"
	"kubelet-guard.io/pkg/dataprotection/deletions"
)

// probeTimeout is how long one probe may take.
const probeTimeout = 5 * time.Second

// Facts are what was probed and read.
type Facts struct {
	Now     time.Time
	Members []check.Member
	// Anonymous has, of each endpoint, what happens without a client certificate.
	Anonymous []Probe
	// Certificates are others of etcd's CA, which need not read the API server's keys.
	Certificates []Probe
	// AuthEnabled reports etcd's authentication; with AuthErr it is unknown.
	AuthEnabled bool
	AuthErr     error
	// RootUsers have the role root; with RootErr they are unknown.
	RootUsers []string
	RootErr   error
	// MetricsURLs are those that etcd listens on; with ManifestErr they are unknown.
	MetricsURLs []string
	ManifestErr error
	// Files must be readable by their owner only.
	Files []File
	// History has its age; nil with HistoryErr.
	History    *deletions.Log
	HistoryErr error
}

// Probe is an attempt that should fail.
type Probe struct {
	// Name is an endpoint, or the file of a certificate.
	Name string
	// Reached: the attempt succeeded.
	Reached bool
	// Err is why it failed. Refused reports whether that was a refusal: else nothing is known.
	Err     error
	Refused bool
}

// File is one with a secret.
type File struct {
	Path string
	Mode fs.FileMode
	Err  error
}

// ProbeAnonymous connects without a client certificate, as anyone who reaches the port can. An
// etcd that accepts it sends the settings of HTTP/2 at once, one that does not sends an alert.
func ProbeAnonymous(ctx context.Context, endpoint string, config *tls.Config) Probe {
	p := Probe{Name: endpoint}
	u, err := url.Parse(endpoint)
	if err != nil {
		p.Err = err
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if u.Scheme != "https" {
		// Without TLS there is nothing that could refuse it.
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			p.Err = err
			return p
		}
		p.Reached = true
		_ = connection.Close()
		return p
	}
	anonymous := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	if config != nil {
		anonymous.RootCAs = config.RootCAs
	}
	connection, err := (&tls.Dialer{Config: anonymous}).DialContext(ctx, "tcp", u.Host)
	if err == nil {
		defer connection.Close()
		deadline, _ := ctx.Deadline()
		_ = connection.SetReadDeadline(deadline)
		_, err = connection.Read(make([]byte, 1))
	}
	p.Reached, p.Err = err == nil, err
	// An alert is what TLS of the other side responds with.
	p.Refused = err != nil && strings.Contains(err.Error(), "remote error: tls: ")
	return p
}

// ProbeCertificate reads one of the API server's keys, without its value, with a client of
// another certificate.
func ProbeCertificate(ctx context.Context, name string, config clientv3.Config, prefix string) Probe {
	p := Probe{Name: name}
	client, err := clientv3.New(config)
	if err != nil {
		p.Err = err
		return p
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err = client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	p.Reached, p.Err = err == nil, err
	p.Refused = err != nil && ctx.Err() == nil
	return p
}

// ReadAuth reads etcd's authentication.
func (f *Facts) ReadAuth(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, err := client.AuthStatus(ctx)
	switch {
	case err == nil:
		f.AuthEnabled = status.Enabled
	case strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error()):
		f.AuthEnabled = true // only then are there permissions; this one is root's
	default:
		f.AuthErr, f.RootErr = err, err
		return
	}
	users, err := client.UserList(ctx)
	if err != nil {
		f.RootErr = err
		return
	}
	for _, name := range users.Users {
		user, err := client.UserGet(ctx, name)
		if err != nil {
			f.RootErr = errors.Join(f.RootErr, err)
		} else if slices.Contains(user.Roles, "root") {
			f.RootUsers = append(f.RootUsers, name)
		}
	}
}

// shortHistory is less than what the API server's default keeps at least.
const shortHistory = 5 * time.Minute

// Judge returns the checks.
func Judge(f *Facts) check.List {
	var list check.List
	list.AddMembers(f.Members)
	for _, p := range f.Anonymous {
		judgeProbe(&list, "without a certificate", p, "--client-cert-auth and --trusted-ca-file of etcd, https in its --listen-client-urls")
	}
	f.judgeAuth(&list)
	for _, p := range f.Certificates {
		judgeProbe(&list, "other certificates", p, "etcdctl auth enable, with a user for the API server's certificate only")
	}
	f.judgeMetrics(&list)
	for _, file := range f.Files {
		switch {
		case file.Err != nil:
			list.Add("files", check.Unknown, "", "%v", file.Err)
		case file.Mode.Perm()&0o077 != 0:
			list.Add("files", check.Problem, "chmod go= "+file.Path, "%s has the mode %04o: others than its owner can read it", file.Path, file.Mode.Perm())
		default:
			list.Add("files", check.OK, "", "%s has the mode %04o", file.Path, file.Mode.Perm())
		}
	}
	f.judgeHistory(&list)
	return list
}

func judgeProbe(list *check.List, name string, p Probe, remedy string) {
	switch {
	case p.Reached:
		list.Add(name, check.Problem, remedy, "%s is accepted", p.Name)
	case p.Refused:
		list.Add(name, check.OK, "", "%s is refused: %v", p.Name, p.Err)
	default:
		list.Add(name, check.Unknown, "", "%s: %v", p.Name, p.Err)
	}
}

func (f *Facts) judgeAuth(list *check.List) {
	switch {
	case f.AuthErr != nil:
		list.Add("authentication", check.Unknown, "", "%v", f.AuthErr)
		return
	case !f.AuthEnabled:
		list.Add("authentication", check.Warning, "docs/data-protection.md, \"Access recipe\"", "it is off: every certificate of etcd's CA may do everything")
		return
	}
	list.Add("authentication", check.OK, "", "it is on")
	switch {
	case f.RootErr != nil:
		list.Add("role root", check.Unknown, "run it with a certificate of root (--etcd-certfile, --etcd-keyfile)", "%v", f.RootErr)
	case len(f.RootUsers) > 1:
		list.Add("role root", check.Warning, "etcdctl user revoke-role", "%d users have it: %s", len(f.RootUsers), strings.Join(f.RootUsers, ", "))
	default:
		list.Add("role root", check.OK, "", "%s has it", strings.Join(f.RootUsers, ", "))
	}
}

func (f *Facts) judgeMetrics(list *check.List) {
	if f.ManifestErr != nil {
		list.Add("metrics", check.Unknown, "", "%v", f.ManifestErr)
		return
	}
	for _, address := range f.MetricsURLs {
		u, err := url.Parse(address)
		switch {
		case err != nil:
			list.Add("metrics", check.Unknown, "", "%v", err)
		case u.Scheme == "https" || isLoopback(u.Hostname()):
			list.Add("metrics", check.OK, "", "%s", address)
		default:
			list.Add("metrics", check.Warning, "--listen-metrics-urls=http://127.0.0.1:2381", "%s is open to everyone who reaches it", address)
		}
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

func (f *Facts) judgeHistory(list *check.List) {
	const remedy = "--etcd-compaction-interval=0 for the API server, --auto-compaction-mode=periodic and --auto-compaction-retention=30m for etcd"
	switch {
	case f.HistoryErr != nil:
		list.Add("history", check.Unknown, "", "%v", f.HistoryErr)
	case f.History.Oldest == 1:
		list.Add("history", check.OK, "", "it is complete: etcd was never compacted")
	case f.History.Since == nil:
		list.Add("history", check.Unknown, "", "of unknown age: no lease of the control plane dates it")
	default:
		age := f.Now.Sub(*f.History.Since).Round(time.Second)
		result := check.OK
		if age < shortHistory {
			result = check.Warning
		}
		list.Add("history", result, remedy, "%s", fmt.Sprintf("it reaches %s back", age))
	}
}
