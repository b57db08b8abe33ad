package snapshots

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/scan"
)

// Inspect decodes every key with the prefix at the newest revision: what there is of each
// resource, keys that do not decode or hold another object, and UIDs that two objects have. It
// returns scan.ErrWrongKey, with the content, if no encrypted value is readable. progress is called
// with the number of keys read so far.
func Inspect(ctx context.Context, r history.Reader, decoder *objects.Decoder, prefix string, progress func(int)) (*Content, error) {
	bounds := r.Bounds()
	c := &Content{Oldest: bounds.Oldest, Newest: bounds.Newest, Resources: map[string]Resource{}}
	keys := map[types.UID]string{}
	encrypted, unreadable := 0, 0
	err := r.List(ctx, prefix, bounds.Newest, func(kv *mvccpb.KeyValue) error {
		key := string(kv.Key)
		name := decoder.ResourceOf(key).String()
		resource := c.Resources[name]
		resource.Objects++
		resource.Bytes += int64(len(kv.Value))
		if with := objects.EncryptionKey(kv.Value); with != "" {
			encrypted++
			if !slices.Contains(resource.EncryptedWith, with) {
				resource.EncryptedWith = append(resource.EncryptedWith, with)
				slices.Sort(resource.EncryptedWith)
			}
		}
		c.Resources[name] = resource
		c.Keys++
		c.Bytes += int64(len(kv.Value))
		progress(c.Keys)

		object, err := decoder.Decode(ctx, key, kv.Value)
		if errors.Is(err, objects.ErrNoKey) {
			unreadable++
		}
		if err == nil {
			err = object.KeyError()
		}
		if err == nil && object.UID != "" {
			if other := keys[object.UID]; other != "" {
				err = fmt.Errorf("its UID %s is also that of %s", object.UID, other)
			}
			keys[object.UID] = key
		}
		if err != nil {
			c.Problems = append(c.Problems, Problem{Key: key, Problem: err.Error()})
		} else if key == prefix+"namespaces/kube-system" {
			c.Cluster = object.UID
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(c.Problems, func(a, b Problem) int { return cmp.Compare(a.Key, b.Key) })
	switch {
	case c.Keys == 0:
		return nil, fmt.Errorf("no keys under %s: is the prefix another (--etcd-prefix)?", prefix)
	case encrypted > 0 && encrypted == unreadable:
		return c, scan.ErrWrongKey
	}
	return c, nil
}

// hashFile returns size and SHA-256 of a file.
func hashFile(path string) (size int64, hash string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer file.Close()
	h := sha256.New()
	size, err = io.Copy(h, file)
	return size, hex.EncodeToString(h.Sum(nil)), err
}
