package devicemanager

import (
	"testing"

	"k8s.io/kubernetes/test/utils/ktesting"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func updateAllocatedDevices(t *testing.T, m *ManagerImpl) {
	m.UpdateAllocatedDevices(ktesting.Init(t).Logger())
}
