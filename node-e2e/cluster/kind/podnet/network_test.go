package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func newNode(name, pods, address string) *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.Unix(1000, 0)},
		Spec:       corev1.NodeSpec{PodCIDR: pods},
	}
	if address != "" {
		node.Status.Addresses = []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name},
			{Type: corev1.NodeInternalIP, Address: address},
		}
	}
	return node
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestNetworkOf(t *testing.T) {
	younger := newNode("c", "10.244.2.0/24", "172.18.0.4")
	younger.CreationTimestamp = metav1.Time{Time: younger.CreationTimestamp.Add(time.Second)}
	dual := newNode("c", "", "172.18.0.4")
	dual.Spec.PodCIDRs = []string{"fd00::/64", "10.244.4.0/24"}
	dual.Status.Addresses = append([]corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "fc00::4"}}, dual.Status.Addresses...)
	own := newNode("a", "10.244.1.0/24", "172.18.0.2")
	for name, test := range map[string]struct {
		nodes []*corev1.Node
		want  network
	}{
		"a route to every other node": {
			[]*corev1.Node{own, newNode("b", "10.244.2.0/24", "172.18.0.3"), newNode("c", "10.244.3.0/24", "172.18.0.4")},
			network{Own: prefix("10.244.1.0/24"), Peers: map[netip.Prefix]netip.Addr{
				prefix("10.244.2.0/24"): netip.MustParseAddr("172.18.0.3"),
				prefix("10.244.3.0/24"): netip.MustParseAddr("172.18.0.4"),
			}},
		},
		"nodes that are not ready for it are left out": {
			[]*corev1.Node{newNode("a", "", "172.18.0.2"), newNode("b", "", "172.18.0.3"), newNode("c", "10.244.3.0/24", "")},
			network{Peers: map[netip.Prefix]netip.Addr{}},
		},
		"the younger of two nodes has a network": {
			[]*corev1.Node{own, younger, newNode("b", "10.244.2.0/24", "172.18.0.3")},
			network{Own: prefix("10.244.1.0/24"), Peers: map[netip.Prefix]netip.Addr{prefix("10.244.2.0/24"): netip.MustParseAddr("172.18.0.4")}},
		},
		"no route leads away from the own pods": {
			[]*corev1.Node{own, newNode("b", "10.244.1.0/24", "172.18.0.3")},
			network{Own: prefix("10.244.1.0/24"), Peers: map[netip.Prefix]netip.Addr{}},
		},
		"IPv4 of a node with both families": {
			[]*corev1.Node{own, dual},
			network{Own: prefix("10.244.1.0/24"), Peers: map[netip.Prefix]netip.Addr{prefix("10.244.4.0/24"): netip.MustParseAddr("172.18.0.4")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, networkOf("a", test.nodes))
		})
	}
}

func TestDiffer(t *testing.T) {
	node := newNode("a", "10.244.1.0/24", "172.18.0.2")
	heartbeat := node.DeepCopy()
	heartbeat.ResourceVersion = "2"
	heartbeat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	require.False(t, differ(node, heartbeat))
	again := node.DeepCopy()
	again.UID = "another"
	require.True(t, differ(node, again))
	require.True(t, differ(node, newNode("a", "10.244.7.0/24", "172.18.0.2")))
	require.True(t, differ(node, newNode("a", "10.244.1.0/24", "172.18.0.9")))
}

func TestReadEnvironment(t *testing.T) {
	read := func(env map[string]string) (environment, error) {
		return readEnvironment(func(name string) string { return env[name] })
	}
	got, err := read(map[string]string{"NODE_NAME": "a", "POD_SUBNET": "10.244.0.0/16", "CONTROL_PLANE_ENDPOINT": "server:6443"})
	require.NoError(t, err)
	require.Equal(t, environment{Node: "a", Server: "server:6443", Pods: prefix("10.244.0.0/16"), Conflist: "/etc/cni/net.d/10-podnet.conflist"}, got)
	_, err = read(map[string]string{"POD_SUBNET": "10.244.0.0/16"})
	require.ErrorContains(t, err, "NODE_NAME is empty")
	_, err = read(map[string]string{"NODE_NAME": "a"})
	require.ErrorContains(t, err, "POD_SUBNET: ")
	_, err = read(map[string]string{"NODE_NAME": "a", "POD_SUBNET": "fd00::/56"})
	require.ErrorContains(t, err, "is not an IPv4 network")
}

func TestWriteConflist(t *testing.T) {
	file := filepath.Join(t.TempDir(), "10-podnet.conflist")
	subnet := func() string {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		var list struct {
			Plugins []struct {
				IPAM struct {
					Ranges [][]struct{ Subnet string }
				}
			}
		}
		require.NoError(t, json.Unmarshal(content, &list))
		return list.Plugins[0].IPAM.Ranges[0][0].Subnet
	}
	require.NoError(t, writeConflist(file, prefix("10.244.1.0/24")))
	require.Equal(t, "10.244.1.0/24", subnet())
	first, err := os.Stat(file)
	require.NoError(t, err)

	// The runtime loads the file again whenever it is written.
	require.NoError(t, writeConflist(file, prefix("10.244.1.0/24")))
	same, err := os.Stat(file)
	require.NoError(t, err)
	require.True(t, os.SameFile(first, same))

	require.NoError(t, writeConflist(file, prefix("10.244.7.0/24")))
	require.Equal(t, "10.244.7.0/24", subnet())
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	require.NoError(t, err)
	require.Equal(t, []string{file}, left)
}

// inNetwork runs a test in an empty network namespace with one interface, 172.18.0.2.
func inNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	// The thread is not unlocked, and so ends with the goroutine of the test.
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "eth0"
	link := &netlink.Veth{LinkAttrs: attributes, PeerName: "host0"}
	require.NoError(t, netlink.LinkAdd(link))
	address, err := netlink.ParseAddr("172.18.0.2/16")
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(link, address))
	require.NoError(t, netlink.LinkSetUp(link))
	peer, err := netlink.LinkByName("host0")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(peer))
}

// gateways are the routes of the namespace that lead over a gateway.
func gateways(t *testing.T) map[string]string {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	require.NoError(t, err)
	found := map[string]string{}
	for _, r := range routes {
		if r.Gw != nil {
			found[r.Dst.String()] = r.Gw.String()
		}
	}
	return found
}

func TestApplyFollowsTheNodes(t *testing.T) {
	inNetwork(t)
	env := environment{Node: "a", Conflist: filepath.Join(t.TempDir(), "10-podnet.conflist")}
	others, err := netlink.ParseIPNet("10.99.0.0/16")
	require.NoError(t, err)
	require.NoError(t, netlink.RouteAdd(&netlink.Route{Dst: others, Gw: netip.MustParseAddr("172.18.0.1").AsSlice()}))

	own := newNode("a", "10.244.1.0/24", "172.18.0.2")
	require.NoError(t, apply(env, []*corev1.Node{own, newNode("b", "10.244.2.0/24", "172.18.0.3"), newNode("c", "10.244.3.0/24", "172.18.0.4")}))
	require.Equal(t, map[string]string{
		"10.99.0.0/16":  "172.18.0.1",
		"10.244.2.0/24": "172.18.0.3",
		"10.244.3.0/24": "172.18.0.4",
	}, gateways(t))

	// The second has got another network, and the third another address.
	nodes := []*corev1.Node{own, newNode("b", "10.244.5.0/24", "172.18.0.3"), newNode("c", "10.244.3.0/24", "172.18.0.7")}
	want := map[string]string{
		"10.99.0.0/16":  "172.18.0.1",
		"10.244.5.0/24": "172.18.0.3",
		"10.244.3.0/24": "172.18.0.7",
	}
	require.NoError(t, apply(env, nodes))
	require.Equal(t, want, gateways(t))

	// An interface that goes down takes its routes with it.
	link, err := netlink.LinkByName("eth0")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetDown(link))
	require.Empty(t, gateways(t))
	require.NoError(t, netlink.LinkSetUp(link))
	require.NoError(t, apply(env, nodes))
	delete(want, "10.99.0.0/16")
	require.Equal(t, want, gateways(t))

	// The node itself is deleted: its running pods keep their network.
	before, err := os.ReadFile(env.Conflist)
	require.NoError(t, err)
	require.NoError(t, apply(env, nodes[1:2]))
	require.Equal(t, map[string]string{"10.244.5.0/24": "172.18.0.3"}, gateways(t))
	after, err := os.ReadFile(env.Conflist)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}

func TestMasqueradeIsReplaced(t *testing.T) {
	inNetwork(t)
	require.NoError(t, masquerade(prefix("10.244.0.0/16")))
	require.NoError(t, masquerade(prefix("10.245.0.0/16")))

	conn, err := nftables.New()
	require.NoError(t, err)
	tables, err := conn.ListTables()
	require.NoError(t, err)
	require.Len(t, tables, 1)
	chains, err := conn.ListChains()
	require.NoError(t, err)
	require.Len(t, chains, 1)
	rules, err := conn.GetRules(tables[0], chains[0])
	require.NoError(t, err)
	require.Len(t, rules, 1)
	require.Equal(t, masqueradeExprs(prefix("10.245.0.0/16")), rules[0].Exprs)
}
