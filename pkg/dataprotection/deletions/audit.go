package deletions

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/runtime/schema"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// Audit has who requested which deletions.
type Audit struct {
	users map[target]string
}

// target of a deletion; of that of a collection, without a name.
type target struct {
	resource        schema.GroupResource
	namespace, name string
}

// ReadAudit reads an API server's audit log in its JSON format. Later deletions of a name count.
func ReadAudit(path string) (*Audit, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	defer file.Close()
	a := &Audit{users: map[target]string{}}
	reader := bufio.NewReader(file)
	for number := 1; ; number++ {
		line, err := reader.ReadBytes('\n')
		if len(line) > 1 && line[len(line)-1] == '\n' {
			var event auditv1.Event
			if err := json.Unmarshal(line, &event); err != nil {
				return nil, fmt.Errorf("--audit-log: %s: line %d is not an audit event as JSON: %w", path, number, err)
			}
			a.add(&event)
		}
		if errors.Is(err, io.EOF) {
			return a, nil // an incomplete last line is still being written
		}
		if err != nil {
			return nil, fmt.Errorf("--audit-log: %w", err)
		}
	}
}

func (a *Audit) add(event *auditv1.Event) {
	deletion := event.Verb == "delete" || event.Verb == "deletecollection"
	if !deletion || event.Stage != auditv1.StageResponseComplete || event.ObjectRef == nil || event.ResponseStatus == nil || event.ResponseStatus.Code >= 300 {
		return
	}
	ref := event.ObjectRef
	a.users[target{schema.GroupResource{Group: ref.APIGroup, Resource: ref.Resource}, ref.Namespace, ref.Name}] = event.User.Username
}
