package embedded

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxClusters bounds the index: it is the third byte of the pod network.
const maxClusters = 256

// podNetwork is the network that an index stands for.
func podNetwork(index int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, byte(index), 0}), 24)
}

// nodeIP is the bridge's address, and the node's: it is on an interface of the
// machine, as a kubelet demands, and no other cluster's.
func nodeIP(index int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 88, byte(index), 1})
}

const bridgePrefix = "kg-"

func bridgeName(index int) string { return fmt.Sprintf("%s%d", bridgePrefix, index) }

// claimIndex creates the bridge of the lowest index that nothing on this machine
// uses. Creating a link is atomic and fails if its name is taken, so clusters
// that start at the same time get different indexes.
func claimIndex(clusterDir string) (int, error) {
	for index := range maxClusters {
		used, err := networkInUse(podNetwork(index))
		if err != nil {
			return 0, err
		}
		if used || cgroupExists(cgroupName(index)) {
			continue
		}
		err = createBridge(index, clusterDir)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		return index, err
	}
	return 0, errors.New("every pod network from 10.88.0.0/24 to 10.88.255.0/24 is in use on this machine; stop a cluster or remove the route")
}

func createBridge(index int, clusterDir string) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridgeName(index)
	// Says whose it is from the link's first moment on, as an alias could not: the
	// kernel takes that only for a link that exists. The clean-up goes by it.
	attributes.HardwareAddr = bridgeAddress(clusterDir)
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("adding the bridge %s: %w", attributes.Name, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: nodeIP(index).AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(bridge, address); err != nil {
		return fmt.Errorf("giving the bridge %s its address: %w", attributes.Name, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("starting the bridge %s: %w", attributes.Name, err)
	}
	return nil
}

// bridgeAddress is the hardware address that marks the bridges of a cluster: a
// locally administered one, made from the folder's path.
func bridgeAddress(clusterDir string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(clusterDir))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// networkInUse reports whether a route other than a default route leads into the
// network.
func networkInUse(network netip.Prefix) (bool, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("listing routes: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		address, ok := netip.AddrFromSlice(route.Dst.IP)
		bits, _ := route.Dst.Mask.Size()
		if ok && bits > 0 && netip.PrefixFrom(address.Unmap(), bits).Overlaps(network) {
			return true, nil
		}
	}
	return false, nil
}

// removeBridges removes the bridges of the cluster and what hangs on them. It
// looks for them by their address, because a run that crashed early has no state
// file yet.
func removeBridges(clusterDir string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var failed []error
	for _, bridge := range links {
		mine := strings.HasPrefix(bridge.Attrs().Name, bridgePrefix) &&
			bytes.Equal(bridge.Attrs().HardwareAddr, bridgeAddress(clusterDir))
		if bridge.Type() != "bridge" || !mine {
			continue
		}
		for _, port := range links {
			if port.Attrs().MasterIndex == bridge.Attrs().Index {
				failed = append(failed, deleteLink(port))
			}
		}
		failed = append(failed, deleteLink(bridge))
	}
	return errors.Join(failed...)
}

func deleteLink(link netlink.Link) error {
	err := netlink.LinkDel(link)
	// The other end of a pair goes with the pod's network namespace, at any time.
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the link %s: %w", link.Attrs().Name, err)
	}
	return nil
}
