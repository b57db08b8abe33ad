package embedded

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Runs in a network namespace of its own, which ends with the thread.
func TestBridgesBelongToOneCluster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		first, err := claimIndex("/clusters/a")
		if err != nil {
			return err
		}
		second, err := claimIndex("/clusters/b")
		if err != nil {
			return err
		}
		assert.NotEqual(t, first, second)
		for _, index := range []int{first, second} {
			used, err := networkInUse(podNetwork(index))
			if err != nil {
				return err
			}
			assert.True(t, used, bridgeName(index))
		}

		pod := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "pod"}
		pod.Name = "port"
		bridge, err := netlink.LinkByName(bridgeName(first))
		if err != nil {
			return err
		}
		pod.MasterIndex = bridge.Attrs().Index
		if err := netlink.LinkAdd(pod); err != nil {
			return err
		}

		if err := removeBridges("/clusters/a"); err != nil {
			return err
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		var names []string
		for _, link := range links {
			if link.Type() == "bridge" || link.Type() == "veth" {
				names = append(names, link.Attrs().Name)
			}
		}
		assert.Equal(t, []string{bridgeName(second)}, names, "what is left")
		return nil
	})
	require.NoError(t, err)
}
