package framework

import (
	"bufio"
	"encoding/json"
	"os"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// ReadAudit reads the entries of an API server's audit log about requests that were
// received after a moment. A line that is half written is left out.
func ReadAudit(path string, since time.Time) ([]auditv1.Event, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var entries []auditv1.Event
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var entry auditv1.Event
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.RequestReceivedTimestamp.After(since) {
			entries = append(entries, entry)
		}
	}
	return entries, lines.Err()
}
