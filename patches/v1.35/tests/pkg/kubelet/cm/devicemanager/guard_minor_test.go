package devicemanager

import "testing"

// What the tests of the hooks need of this minor version; see patches/README.md.

func updateAllocatedDevices(_ *testing.T, m *ManagerImpl) { m.UpdateAllocatedDevices() }
