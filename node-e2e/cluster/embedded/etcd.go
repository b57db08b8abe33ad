package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// etcdMember is the name of the only member.
const etcdMember = "node"

// Etcd controls the store and its content.
type Etcd struct {
	*Component
	testnode.Etcd
}

// Snapshot saves the store's content to a new file.
func (e *Etcd) Snapshot(ctx context.Context, path string) error {
	return e.Do(ctx, "saving a snapshot of etcd", func(client *clientv3.Client) error {
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
	return e.RestoreWith(ctx, path)
}

// RestoreWith is Restore with further flags of etcdutl snapshot restore, such as those that
// raise the revisions.
func (e *Etcd) RestoreWith(ctx context.Context, path string, flags ...string) error {
	c := e.cluster
	return e.replaceData(ctx, func() error {
		restore := exec.CommandContext(ctx, filepath.Join(c.config.NodeDir, "etcdutl"), append([]string{"snapshot", "restore", path,
			"--data-dir=" + c.etcdDataDir(),
			"--name=" + etcdMember,
			"--initial-cluster=" + etcdMember + "=" + c.url("https", etcdPeerPort),
			"--initial-advertise-peer-urls=" + c.url("https", etcdPeerPort)}, flags...)...)
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
