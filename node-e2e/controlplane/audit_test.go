package controlplane

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kubelet-guard.io/node-e2e/framework"
)

// auditLogFile is in the cluster's log folder.
const auditLogFile = "audit.log"

// auditPolicy logs writes, and all that the webhook does itself, which shows what of its
// rights it uses. Annotations of admission are part of the metadata.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:kubelet-guard-system:guard-webhook"]
  - level: None
    resources:
      - group: coordination.k8s.io
      - group: ""
        resources: [events]
      - group: events.k8s.io
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
`

// auditWait covers the time between an answer and its entry in the log.
const auditWait = 10 * time.Second

// auditEntry waits for an entry of the audit log that was written after since and
// that the condition holds for.
func auditEntry(ctx context.Context, since time.Time, what string, match func(auditv1.Event) bool) auditv1.Event {
	GinkgoHelper()
	var found auditv1.Event
	Eventually(ctx, func() error {
		entries, err := auditEntries(since)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if match(entry) {
				found = entry
				return nil
			}
		}
		return fmt.Errorf("none of %d entries", len(entries))
	}).WithTimeout(auditWait).Should(Succeed(), "an entry of the audit log: %s", what)
	return found
}

// auditEntries reads the entries of requests that were received after since.
func auditEntries(since time.Time) ([]auditv1.Event, error) {
	return framework.ReadAudit(filepath.Join(cluster.LogDir(), auditLogFile), since)
}
