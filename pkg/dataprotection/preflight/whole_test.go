package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

// store has the newest version of keys only.
type store struct {
	newest int64
	kvs    []*mvccpb.KeyValue
}

func (s *store) put(key, value string, created, modified int64) {
	s.kvs = append(s.kvs, &mvccpb.KeyValue{Key: []byte("/registry/" + key), Value: []byte(value), CreateRevision: created, ModRevision: modified})
}

func (s *store) Bounds() history.Bounds { return history.Bounds{Oldest: 1, Newest: s.newest} }

func (s *store) Deletions(context.Context, string, func(history.Deletion) error) error { return nil }

func (s *store) Get(_ context.Context, key string, _ int64) (*mvccpb.KeyValue, error) {
	i := slices.IndexFunc(s.kvs, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == key })
	if i < 0 {
		return nil, nil
	}
	return s.kvs[i], nil
}

func (s *store) List(_ context.Context, prefix string, _ int64, visit func(*mvccpb.KeyValue) error) error {
	for _, kv := range s.kvs {
		if !strings.HasPrefix(string(kv.Key), prefix) {
			continue
		}
		if err := visit(kv); err != nil {
			return err
		}
	}
	return nil
}

func object(kind, name, uid, rest string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":%q,"metadata":{"name":%q,"namespace":"default","uid":%q%s}`, kind, name, uid, rest)
}

func TestWhatAWholeRestoreChanges(t *testing.T) {
	t.Parallel()
	file, live := &store{newest: 100}, &store{newest: 2_000}
	for _, s := range []*store{file, live} {
		s.put("configmaps/default/same", object("ConfigMap", "same", "1", "}"), 10, 20)
		// Written again with its UID, as guard-etcd restore does.
		s.put("configmaps/default/restored", object("ConfigMap", "restored", "2", "}"), s.newest, s.newest)
		s.put("configmaps/default/again", object("ConfigMap", "again", fmt.Sprint(s.newest), "}"), s.newest, s.newest)
		s.put("configmaps/default/changed", object("ConfigMap", "changed", "3", "}"), 10, s.newest)
		s.put("leases/kube-system/holder", "not compared", s.newest, s.newest)
	}
	file.put("secrets/default/deleted", object("Secret", "deleted", "4", "}"), 10, 10)
	live.put("secrets/default/new", object("Secret", "new", "5", "}"), 1_000, 1_000)
	live.put("minions/guarded", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"guarded","uid":"6"},"status":{"nodeInfo":{"kubeletVersion":"v1.37.2+guard.0.1.0"}}}`, 10, 10)
	file.put("minions/guarded", "", 10, 10)
	label := `,"labels":{"kubelet-guard.io/explicit-deletion":"required"}}`
	pod := func(name, meta, node, phase string) {
		live.put("pods/default/"+name, object("Pod", name, name, meta+fmt.Sprintf(`,"spec":{"nodeName":%q},"status":{"phase":%q}`, node, phase)), 1_000, 1_000)
	}
	pod("held", label, "guarded", "Running")
	pod("not-protected", "}", "guarded", "Running")
	pod("on-a-stock-node", label, "stock", "Running")
	pod("done", "}", "stock", "Succeeded")
	pod("no-node", "}", "", "Pending")
	pod("static", `,"annotations":{"kubernetes.io/config.mirror":"x"}}`, "stock", "Running")
	// The rest of each object.
	for _, kv := range append(slices.Clone(live.kvs), file.kvs...) {
		if value := string(kv.Value); strings.Count(value, "{") > strings.Count(value, "}") {
			kv.Value = []byte(value + "}")
		}
	}

	decoder, err := objects.NewDecoder(t.Context(), "/registry/", "")
	require.NoError(t, err)
	w, err := CompareWhole(t.Context(), file, live, decoder, "/registry/")
	require.NoError(t, err)
	require.Equal(t, []ResourceChange{
		{Resource: "configmaps", ComeBack: 1, Lost: 1, Older: 2},
		{Resource: "pods", Lost: 6},
		{Resource: "secrets", ComeBack: 1, Lost: 1},
	}, w.Resources)
	require.Len(t, w.Pods, 3)
	for i, want := range []string{"not-protected", "on-a-stock-node", "held"} {
		require.Equal(t, want, w.Pods[i].Name)
		require.Equal(t, want == "held", w.Pods[i].Held)
	}
	require.EqualValues(t, 1_000_001_900, w.Bump)
}

func TestCommandsOfAWholeRestore(t *testing.T) {
	t.Parallel()
	w := WithoutEtcd(&store{newest: 7})
	require.Equal(t, []int64{7, 0}, []int64{w.Snapshot, w.Live})
	w.SetCommands("/var/backups/it's.db", "/var/lib/new", []snapshots.Member{
		{Name: "a", PeerURLs: []string{"https://192.0.2.1:2380"}}, {Name: "b", PeerURLs: []string{"https://192.0.2.2:2380", "https://[2001:db8::2]:2380"}},
	})
	cluster := "'a=https://192.0.2.1:2380,b=https://192.0.2.2:2380,b=https://[2001:db8::2]:2380'"
	require.Equal(t, []string{
		`etcdutl snapshot restore '/var/backups/it'\''s.db' --data-dir=/var/lib/new --name=a --initial-advertise-peer-urls=https://192.0.2.1:2380 --initial-cluster=` + cluster + " --bump-revision=1000000000 --mark-compacted",
		`etcdutl snapshot restore '/var/backups/it'\''s.db' --data-dir=/var/lib/new --name=b --initial-advertise-peer-urls='https://192.0.2.2:2380,https://[2001:db8::2]:2380' --initial-cluster=` + cluster + " --bump-revision=1000000000 --mark-compacted",
	}, w.Commands)
}
