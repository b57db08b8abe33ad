package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// VerifyOptions are those of Verify.
type VerifyOptions struct {
	Decoder *objects.Decoder
	Prefix  string
	// SkipHashCheck accepts a file without a checksum.
	SkipHashCheck bool
	// Scratch is the folder in which the snapshot is restored, in a folder of its own that is
	// removed; empty means that of the system for temporary files.
	Scratch string
	// Check is called with the restored snapshot, as to compare it with a running cluster; may
	// be nil.
	Check func(*history.File) error
	// Start is called with the data directory of the restored snapshot, which it may write; may be
	// nil.
	Start func(dataDir string, content *Content) error
	// Progress is called with the number of keys decoded.
	Progress func(int)
}

// Report is the result of Verify.
type Report struct {
	// File is the verified snapshot; Size in bytes and SHA256 are the file's.
	File   string `json:"file"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Manifest reports whether the snapshot has one, and Differences what it says otherwise.
	Manifest    bool     `json:"manifest"`
	Differences []string `json:"differences,omitempty"`
	Content
}

// Healthy reports whether the API server could read all that the snapshot has, and it is what was
// saved.
func (r *Report) Healthy() bool { return len(r.Problems) == 0 && len(r.Differences) == 0 }

// Verify restores a snapshot, a file or the folder of a saved one, with etcd's own package into a
// scratch folder, as etcdutl snapshot restore does, and decodes every object of the result.
// Problems of single keys are in the report; errors wrap history.ErrNoSnapshot if the file is
// damaged, and scan.ErrWrongKey, with the report, if no encrypted value is readable.
func Verify(ctx context.Context, path string, o VerifyOptions) (*Report, error) {
	file, manifest, err := Find(path)
	if err != nil {
		return nil, err
	}
	r := &Report{File: file, Manifest: manifest != nil}
	// etcd's package panics on some damaged files; this checks before it.
	original, err := history.OpenFile(file, o.SkipHashCheck)
	if err != nil {
		return nil, err
	}
	if err := original.Close(); err != nil {
		return nil, err
	}
	if r.Size, r.SHA256, err = hashFile(file); err != nil {
		return nil, err
	}
	if manifest != nil && manifest.SHA256 != r.SHA256 {
		return nil, fmt.Errorf("%s: %w: its SHA-256 is not that of the manifest", file, history.ErrNoSnapshot)
	}
	scratch, err := os.MkdirTemp(o.Scratch, "guard-etcd-verify-")
	if err != nil {
		return nil, fmt.Errorf("--scratch-dir: %w", err)
	}
	defer os.RemoveAll(scratch)
	dataDir := filepath.Join(scratch, "etcd")
	if err := r.decodeRestored(ctx, file, dataDir, manifest, o); err != nil {
		if r.Keys == 0 {
			return nil, err
		}
		return r, err
	}
	if o.Start != nil {
		return r, o.Start(dataDir, &r.Content)
	}
	return r, nil
}

// decodeRestored restores the file into a data directory, and decodes what that has.
func (r *Report) decodeRestored(ctx context.Context, file, dataDir string, manifest *Manifest, o VerifyOptions) error {
	restored, err := restoreInto(file, dataDir, o.SkipHashCheck)
	if err != nil {
		return fmt.Errorf("%s: restoring it: %w", file, err)
	}
	defer restored.Close()
	content, err := Inspect(ctx, restored, o.Decoder, o.Prefix, o.Progress)
	if content == nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.Content = *content
	if err != nil {
		return err
	}
	if manifest != nil {
		r.Differences = manifest.Differences(content)
	}
	if o.Check != nil {
		if err := o.Check(restored); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// Find returns the file of a snapshot, a file or the folder of a saved one, and its manifest; nil
// for a file without one.
func Find(path string) (string, *Manifest, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", nil, err
	}
	if info.IsDir() {
		manifest, err := ReadManifest(path)
		return filepath.Join(path, FileName), manifest, err
	}
	if filepath.Base(path) != FileName {
		return path, nil, nil
	}
	manifest, err := ReadManifest(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return path, manifest, err
}

// restoreInto restores a snapshot as a member of a cluster of one, and opens the result.
func restoreInto(file, dataDir string, skipHashCheck bool) (opened *history.File, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v", history.ErrNoSnapshot, cause)
		}
	}()
	const name, peer = "verify", "http://localhost:2380" // never listened to
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: name, OutputDataDir: dataDir, PeerURLs: []string{peer}, InitialCluster: name + "=" + peer,
		InitialClusterToken: name, SkipHashCheck: skipHashCheck,
	})
	if err != nil {
		return nil, err
	}
	return history.OpenFile(filepath.Join(dataDir, "member", "snap", "db"), true)
}
