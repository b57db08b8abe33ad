package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"kubelet-guard.io/pkg/dataprotection/deletions"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/scan"
)

const (
	// savingPrefix starts the name of a folder that is being made.
	savingPrefix = ".saving-"
	lockName     = ".lock"
)

// SaveOptions are those of Save.
type SaveOptions struct {
	// Dir gets the folder of the snapshot.
	Dir string
	// Client reaches the members; the one with the newest revision sends the snapshot.
	Client clientv3.Config
	// Decoder, Prefix and EncryptionConfig are the API server's.
	Decoder          *objects.Decoder
	Prefix           string
	EncryptionConfig string
	Now              func() time.Time
	// Progress is called with the number of keys decoded.
	Progress func(int)
}

// ErrBusy says that another process saves into the folder.
var ErrBusy = errors.New("another guard-etcd save is running")

// Save saves a snapshot and its manifest, and returns it. It is kept whatever its content: with
// scan.ErrWrongKey, or problems in the manifest, it is the best that there is. An interrupted save
// is removed by the next.
func Save(ctx context.Context, o SaveOptions) (*Saved, error) {
	unlock, err := lock(o.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m := &Manifest{APIVersion: manifestAPIVersion, Kind: manifestKind, Saved: o.Now().UTC().Truncate(time.Second), Prefix: o.Prefix}
	if m.Encryption, err = ReadEncryptionConfig(o.EncryptionConfig); err != nil {
		return nil, err
	}
	final := filepath.Join(o.Dir, m.Saved.Format(nameFormat))
	if _, err := os.Lstat(final); err == nil {
		return nil, fmt.Errorf("%s is there already", final)
	}
	member, err := m.chooseMember(ctx, o)
	if err != nil {
		return nil, err
	}
	saving := filepath.Join(o.Dir, savingPrefix+filepath.Base(final))
	if err := os.Mkdir(saving, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(saving) // nothing is there any more once it has its name
	config := o.Client
	config.Endpoints = []string{member}
	path := filepath.Join(saving, FileName)
	if m.EtcdVersion, err = snapshot.SaveWithVersion(ctx, zap.NewNop(), config, path); err != nil {
		return nil, fmt.Errorf("saving a snapshot of %s: %w%s", member, err, saveHint(err))
	}
	if m.Size, m.SHA256, err = hashFile(path); err != nil {
		return nil, err
	}
	contentErr := m.inspect(ctx, path, o)
	if contentErr != nil && !errors.Is(contentErr, scan.ErrWrongKey) {
		return nil, contentErr
	}
	if err := publish(m, saving, final); err != nil {
		return nil, err
	}
	return &Saved{Path: final, Manifest: m}, contentErr
}

func (m *Manifest) inspect(ctx context.Context, path string, o SaveOptions) error {
	file, err := history.OpenFile(path, false)
	if err != nil {
		return err
	}
	defer file.Close()
	content, err := Inspect(ctx, file, o.Decoder, o.Prefix, o.Progress)
	if content != nil {
		m.Content = *content
	}
	if err != nil {
		return err
	}
	m.HistorySince, err = deletions.Since(ctx, file, o.Decoder, o.Prefix)
	return err
}

// publish writes the manifest and gives the folder its name.
func publish(m *Manifest, saving, final string) error {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(saving, ManifestName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(content, '\n'))
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := syncDir(saving); err != nil {
		return err
	}
	if err := os.Rename(saving, final); err != nil {
		return err
	}
	return syncDir(filepath.Dir(final))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// lock makes the folder and takes its lock, which ends with the process, and removes what an
// interrupted save left: nobody else works on it now.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrBusy)
		}
		return nil, fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, savingPrefix+"*"))
	for _, leftover := range leftovers {
		err = errors.Join(err, os.RemoveAll(leftover))
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}

// statusTimeout is how long a member may take to report its state.
const statusTimeout = 5 * time.Second

// chooseMember returns the endpoint with the newest revision, and records the members. It refuses
// to start what does not fit on the disk.
func (m *Manifest) chooseMember(ctx context.Context, o SaveOptions) (endpoint string, err error) {
	client, err := clientv3.New(o.Client)
	if err != nil {
		return "", err
	}
	defer client.Close()
	var newest *clientv3.StatusResponse
	var failures []error
	for _, candidate := range o.Client.Endpoints {
		statusCtx, cancel := context.WithTimeout(ctx, statusTimeout)
		status, err := client.Status(statusCtx, candidate)
		cancel()
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", candidate, err))
		} else if newest == nil || status.Header.Revision > newest.Header.Revision {
			newest, endpoint = status, candidate
		}
	}
	if newest == nil {
		return "", fmt.Errorf("no member of etcd responds (--etcd-servers): %w", errors.Join(failures...))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(o.Dir, &disk); err != nil {
		return "", fmt.Errorf("%s: %w", o.Dir, err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < newest.DbSize {
		return "", fmt.Errorf("%s has room for %d bytes, and the snapshot has %d", o.Dir, free, newest.DbSize)
	}
	// Where etcd's authentication does not permit it, the manifest goes without.
	if response, err := client.MemberList(ctx); err == nil {
		for _, member := range response.Members {
			m.Members = append(m.Members, Member{Name: member.Name, PeerURLs: member.PeerURLs})
		}
	}
	return endpoint, nil
}

func saveHint(err error) string {
	if strings.Contains(err.Error(), "permission denied") {
		return ": with etcd's authentication, a snapshot needs a user with the role root (--etcd-certfile, --etcd-keyfile)"
	}
	return ""
}
