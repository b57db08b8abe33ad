package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// routeProtocol marks the routes of this program, so that it finds those of an earlier
// life. The kernel gives the number no meaning.
const routeProtocol netlink.RouteProtocol = 91

// network is what a node must have so that its pods reach all others.
type network struct {
	// Own is the node's pod network, invalid while it has none.
	Own netip.Prefix
	// Peers are the addresses of the other nodes by their pod network.
	Peers map[netip.Prefix]netip.Addr
}

// networkOf computes the network of a node. Nodes that have no pod network or no
// address yet are left out; of two nodes that claim a network, the younger one has it.
func networkOf(own string, nodes []*corev1.Node) network {
	n := network{Peers: map[netip.Prefix]netip.Addr{}}
	byAge := slices.Clone(nodes)
	slices.SortFunc(byAge, func(a, b *corev1.Node) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, node := range byAge {
		pods, ok := podNetwork(node)
		if !ok {
			continue
		}
		if node.Name == own {
			n.Own = pods
			continue
		}
		if address, ok := internalIP(node); ok {
			n.Peers[pods] = address
		}
	}
	// A route to another node would take the pods of this one.
	delete(n.Peers, n.Own)
	return n
}

// differ reports whether a change of a Node can change a network. The kubelet writes
// the status every few seconds.
func differ(old, new *corev1.Node) bool {
	oldPods, _ := podNetwork(old)
	newPods, _ := podNetwork(new)
	oldIP, _ := internalIP(old)
	newIP, _ := internalIP(new)
	return oldPods != newPods || oldIP != newIP || old.UID != new.UID
}

func podNetwork(node *corev1.Node) (netip.Prefix, bool) {
	for _, cidr := range append([]string{node.Spec.PodCIDR}, node.Spec.PodCIDRs...) {
		if prefix, err := netip.ParsePrefix(cidr); err == nil && prefix.Addr().Is4() {
			return prefix.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

func internalIP(node *corev1.Node) (netip.Addr, bool) {
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if address, err := netip.ParseAddr(a.Address); err == nil && address.Is4() {
			return address, true
		}
	}
	return netip.Addr{}, false
}

// apply makes the node have the network that its Node objects describe.
func apply(env environment, nodes []*corev1.Node) error {
	n := networkOf(env.Node, nodes)
	var failed []error
	// A node that is deleted keeps what its running pods use until it registers again.
	if n.Own.IsValid() {
		failed = append(failed, writeConflist(env.Conflist, n.Own))
	}
	return errors.Join(append(failed, applyRoutes(n.Peers))...)
}

// conflist is the configuration of the CNI plugins for pods of the network. The state
// of host-local is in a folder that is empty after a restart of the node, as the node's
// pods are then.
func conflist(pods netip.Prefix) ([]byte, error) {
	type object = map[string]any
	content, err := json.MarshalIndent(object{
		"cniVersion": "0.3.1",
		"name":       "podnet",
		"plugins": []object{
			{
				"type":   "ptp",
				"ipMasq": false,
				"ipam": object{
					"type":    "host-local",
					"dataDir": "/run/cni-ipam-state",
					"routes":  []object{{"dst": "0.0.0.0/0"}},
					"ranges":  [][]object{{{"subnet": pods.String()}}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(content, '\n'), nil
}

// writeConflist writes the configuration if it is not there already. The runtime
// watches the folder, so the file appears whole.
func writeConflist(path string, pods netip.Prefix) error {
	want, err := conflist(pods)
	if err != nil {
		return err
	}
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(have, want) {
		return nil
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, want, 0o644); err != nil {
		return err
	}
	if err := os.Rename(partial, path); err != nil {
		return err
	}
	klog.InfoS("Pods get addresses of another network", "network", pods)
	return nil
}

// applyRoutes makes the routes of this program be those of the peers.
func applyRoutes(peers map[netip.Prefix]netip.Addr) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	var failed []error
	present := map[netip.Prefix]bool{}
	for _, route := range have {
		to, ok := prefixOf(route.Dst)
		if ok && peers[to].IsValid() {
			present[to] = peers[to].String() == route.Gw.String()
			continue
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("removing the route to %s: %w", to, err))
			continue
		}
		klog.InfoS("Removed a route", "network", to)
	}
	for to, via := range peers {
		if present[to] {
			continue
		}
		route := &netlink.Route{
			Dst:      &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)},
			Gw:       via.AsSlice(),
			Protocol: routeProtocol,
		}
		if err := netlink.RouteReplace(route); err != nil {
			failed = append(failed, fmt.Errorf("adding the route to %s over %s: %w", to, via, err))
			continue
		}
		klog.InfoS("Set a route", "network", to, "node", via)
	}
	return errors.Join(failed...)
}

func prefixOf(network *net.IPNet) (netip.Prefix, bool) {
	if network == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	return netip.PrefixFrom(address.Unmap(), bits), ok
}

// masquerade gives packets from the pods to addresses outside of their network the
// address of the node. The table is this program's alone and is replaced as a whole.
func masquerade(pods netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	// Adding what exists changes nothing, deleting what does not exist fails.
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	chain := conn.AddChain(&nftables.Chain{
		Name:     "postrouting",
		Table:    table,
		Type:     nftables.ChainTypeNAT,
		Hooknum:  nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: masqueradeExprs(pods)})
	return conn.Flush()
}

// Offsets of the addresses in the header of IPv4.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// masqueradeExprs is the rule `ip saddr PODS ip daddr != PODS masquerade`.
func masqueradeExprs(pods netip.Prefix) []expr.Any {
	match := func(offset uint32, op expr.CmpOp) []expr.Any {
		mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - pods.Bits()))
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: pods.Masked().Addr().AsSlice()},
		}
	}
	rule := append(match(sourceOffset, expr.CmpOpEq), match(destinationOffset, expr.CmpOpNeq)...)
	return append(rule, &expr.Masq{})
}
