// Package snapshots saves snapshots of etcd that are known to restore, and verifies them.
//
// A saved snapshot is a folder, named by its time in UTC, with the file that etcd sends and a
// manifest: what a restore needs besides the file, and what the file had when it was saved. The
// folder gets its name last, so that there is never half a snapshot under it.
package snapshots

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// FileName and ManifestName are the files of a saved snapshot.
	FileName     = "snapshot.db"
	ManifestName = "manifest.json"

	manifestAPIVersion = "cli.kubelet-guard.io/v1alpha1"
	manifestKind       = "SnapshotManifest"
	// nameFormat sorts by time.
	nameFormat = "20060102T150405Z"
)

// Manifest describes a saved snapshot.
type Manifest struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Saved      time.Time `json:"saved"`
	// Size in bytes and SHA-256 of the file, in hexadecimal, as sha256sum prints it.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// EtcdVersion is that of the member that sent the snapshot.
	EtcdVersion string `json:"etcdVersion,omitempty"`
	// Members of the cluster: etcdutl snapshot restore needs names and peer URLs.
	Members []Member `json:"members,omitempty"`
	// Prefix of the API server's keys.
	Prefix string `json:"prefix"`
	// Encryption is the API server's configuration, without which encrypted objects are lost;
	// nil without one. Only its hash is here: the file has the keys.
	Encryption *EncryptionConfig `json:"encryption,omitempty"`
	// HistorySince is the time of the oldest revision that the file can be read at, to about ten
	// seconds; nil when no lease of the control plane dates it.
	HistorySince *time.Time `json:"historySince,omitempty"`
	Content
}

// Member of an etcd cluster.
type Member struct {
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
}

// EncryptionConfig is a file of --encryption-provider-config.
type EncryptionConfig struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
}

// ReadEncryptionConfig returns the file's hash; nil for no file.
func ReadEncryptionConfig(path string) (*EncryptionConfig, error) {
	if path == "" {
		return nil, nil
	}
	_, hash, err := hashFile(path)
	if err != nil {
		return nil, fmt.Errorf("--encryption-provider-config: %w", err)
	}
	return &EncryptionConfig{Path: path, SHA256: hash}, nil
}

// Saved is a snapshot in a folder.
type Saved struct {
	Path string
	*Manifest
}

// File returns the snapshot's file.
func (s *Saved) File() string { return filepath.Join(s.Path, FileName) }

// List returns the snapshots of a folder, the oldest first, and an error that names those without
// a readable manifest. A folder that is not there has none.
func List(dir string) ([]*Saved, error) {
	list, unreadable, err := read(dir)
	return list, errors.Join(append(unreadable, err)...)
}

// read returns the snapshots of a folder, the oldest first, and of each without a readable manifest
// why.
func read(dir string) (list []*Saved, unreadable []error, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries { // sorted by name, so by time
		if _, err := time.Parse(nameFormat, entry.Name()); err != nil || !entry.IsDir() {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		manifest, err := ReadManifest(path)
		if err != nil {
			unreadable = append(unreadable, err)
			continue
		}
		list = append(list, &Saved{Path: path, Manifest: manifest})
	}
	return list, unreadable, nil
}

// ReadManifest reads the manifest in the folder of a snapshot.
func ReadManifest(path string) (*Manifest, error) {
	file := filepath.Join(path, ManifestName)
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	if err := json.Unmarshal(content, m); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if m.APIVersion != manifestAPIVersion || m.Kind != manifestKind {
		return nil, fmt.Errorf("%s: it is a %s %s, not a %s %s", file, m.APIVersion, m.Kind, manifestAPIVersion, manifestKind)
	}
	return m, nil
}

// Differences returns what a snapshot has other than its manifest says, sorted; none if it is what
// was saved.
func (m *Manifest) Differences(c *Content) []string {
	var list []string
	differ := func(what string, saved, found any) {
		if saved != found {
			list = append(list, fmt.Sprintf("%s: %v when it was saved, now %v", what, saved, found))
		}
	}
	differ("UID of kube-system", m.Cluster, c.Cluster)
	differ("newest revision", m.Newest, c.Newest)
	for resource := range m.Resources {
		differ(resource, m.Resources[resource].Objects, c.Resources[resource].Objects)
	}
	for resource := range c.Resources {
		if _, known := m.Resources[resource]; !known {
			differ(resource, 0, c.Resources[resource].Objects)
		}
	}
	slices.Sort(list)
	return list
}

// Content is what a snapshot has at its newest revision.
type Content struct {
	// Oldest and Newest are the revisions that it can be read at.
	Oldest int64 `json:"oldestRevision"`
	Newest int64 `json:"newestRevision"`
	// Cluster is the UID of the namespace kube-system, which a cluster has for life.
	Cluster types.UID `json:"clusterUID,omitempty"`
	Keys    int       `json:"keys"`
	Bytes   int64     `json:"bytes"`
	// Resources by name and group, as deployments.apps.
	Resources map[string]Resource `json:"resources"`
	// Problems of keys, sorted by key: those that the API server could not read.
	Problems []Problem `json:"problems,omitempty"`
}

// Resource is what a snapshot has of one.
type Resource struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// EncryptedWith are the providers and keys of its encrypted objects, as aesgcm:v1:key1.
	EncryptedWith []string `json:"encryptedWith,omitempty"`
}

// Problem is a key that is damaged.
type Problem struct {
	Key     string `json:"key"`
	Problem string `json:"problem"`
}
