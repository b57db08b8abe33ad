package embedded

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdMember is the name of the only member.
const etcdMember = "node"

// ErrKeyNotFound says that etcd has no such key.
var ErrKeyNotFound = errors.New("key not found in etcd")

// Etcd controls the store and its content.
type Etcd struct {
	*Component
}

// Get returns the raw value of a key, such as /registry/pods/default/web.
// A missing key is ErrKeyNotFound.
func (e *Etcd) Get(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	err := e.withClient(ctx, func(client *clientv3.Client) error {
		response, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		if len(response.Kvs) == 0 {
			return ErrKeyNotFound
		}
		value = response.Kvs[0].Value
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	return value, nil
}

// PutRaw writes a key without the API server.
func (e *Etcd) PutRaw(ctx context.Context, key string, value []byte) error {
	err := e.withClient(ctx, func(client *clientv3.Client) error {
		_, err := client.Put(ctx, key, string(value))
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}

// DeleteKey removes a key without the API server. A missing key is
// ErrKeyNotFound, so that a test does not pass on a mistyped one.
func (e *Etcd) DeleteKey(ctx context.Context, key string) error {
	err := e.withClient(ctx, func(client *clientv3.Client) error {
		response, err := client.Delete(ctx, key)
		if err == nil && response.Deleted == 0 {
			return ErrKeyNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}

// Snapshot saves the store's content to a new file.
func (e *Etcd) Snapshot(ctx context.Context, path string) error {
	err := e.withClient(ctx, func(client *clientv3.Client) error {
		content, err := client.Snapshot(ctx)
		if err != nil {
			return err
		}
		defer content.Close()
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, content); err != nil {
			return errors.Join(err, file.Close(), os.Remove(path))
		}
		return file.Close()
	})
	if err != nil {
		return fmt.Errorf("saving a snapshot of etcd: %w", err)
	}
	return nil
}

// Wipe stops the API server and etcd, replaces the data by an empty store and
// starts both. Certificates and service account keys stay. The controllers and
// the scheduler restart with the API server, their caches are ahead of the new
// store; the kubelet does not, and registers its node again only when it is restarted.
// Returns when pods can be created in the default namespace.
func (e *Etcd) Wipe(ctx context.Context) error {
	return e.replaceData(ctx, func() error { return nil })
}

// Restore is Wipe with the content of a snapshot in place of nothing. Revisions
// continue from those of the snapshot, as they do when an operator restores
// without raising them.
func (e *Etcd) Restore(ctx context.Context, path string) error {
	c := e.cluster
	return e.replaceData(ctx, func() error {
		restore := exec.CommandContext(ctx, filepath.Join(c.config.NodeDir, "etcdutl"), "snapshot", "restore", path,
			"--data-dir="+c.etcdDataDir(),
			"--name="+etcdMember,
			"--initial-cluster="+etcdMember+"="+c.url("https", etcdPeerPort),
			"--initial-advertise-peer-urls="+c.url("https", etcdPeerPort))
		restore.Env = append(os.Environ(), markerEnv+"="+c.config.Dir)
		if output, err := restore.CombinedOutput(); err != nil {
			return fmt.Errorf("restoring the snapshot %s: %w: %s", path, err, lastLines(string(output), 10))
		}
		return nil
	})
}

// replaceData runs replace while neither etcd nor the API server runs and the
// data folder is gone.
func (e *Etcd) replaceData(ctx context.Context, replace func() error) error {
	c := e.cluster
	if err := c.apiServer.Stop(ctx); err != nil {
		return err
	}
	if err := e.Stop(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(c.etcdDataDir()); err != nil {
		return err
	}
	if err := replace(); err != nil {
		return err
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	if err := c.apiServer.Start(ctx); err != nil {
		return err
	}
	return c.awaitServiceAccount(ctx)
}

func (e *Etcd) withClient(ctx context.Context, f func(*clientv3.Client) error) error {
	d := e.cluster.pki
	authority, err := os.ReadFile(d.cert("etcd/ca"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return fmt.Errorf("%s holds no certificate", d.cert("etcd/ca"))
	}
	certificate, err := tls.LoadX509KeyPair(d.cert("apiserver-etcd-client"), d.key("apiserver-etcd-client"))
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{
		Context:     ctx,
		Endpoints:   []string{e.cluster.url("https", etcdClientPort)},
		DialTimeout: 5 * time.Second,
		TLS:         &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		Logger:      zap.NewNop(),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	return f(client)
}
