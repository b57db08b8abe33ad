package nodeshutdown

import (
	"testing"

	"k8s.io/kubernetes/test/utils/ktesting"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func shutDown(t *testing.T, m *managerImpl) error { return m.processShutdownEvent(ktesting.Init(t)) }
