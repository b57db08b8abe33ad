package vm

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// tapName is the guest's port of a bridge. A link's name has 15 characters at most.
func tapName(bridge string) string { return bridge + "-vm" }

// connect adds the guest's port to a bridge, and returns what removes it.
func connect(bridge string) (remove func(), err error) {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, fmt.Errorf("the bridge %s: %w", bridge, err)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = tapName(bridge)
	tap := &netlink.Tuntap{LinkAttrs: attributes, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("adding the port %s: %w", attributes.Name, err)
	}
	remove = func() { _ = netlink.LinkDel(tap) }
	if err := netlink.LinkSetMaster(tap, master); err != nil {
		remove()
		return nil, fmt.Errorf("connecting the port %s with %s: %w", attributes.Name, bridge, err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		remove()
		return nil, fmt.Errorf("starting the port %s: %w", attributes.Name, err)
	}
	return remove, nil
}
