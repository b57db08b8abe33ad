package check

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/version"
)

// Member is one of etcd, as it reports itself.
type Member struct {
	Endpoint, Version string
	// Alarms are those of Status, as "memberID:1 alarm:NOSPACE ".
	Alarms []string
	// Err says why it did not respond.
	Err error
}

// AddMembers adds a check for each member: whether it responds, and its version as to reading the
// history and to authentication.
func (l *List) AddMembers(members []Member) {
	for _, m := range members {
		if m.Err != nil {
			l.Add("etcd", Problem, "start the member, or name another (--etcd-servers)", "%s does not respond: %v", m.Endpoint, m.Err)
			continue
		}
		result, detail, remedy := judgeVersion(m.Version)
		l.Add("etcd", result, remedy, "%s: %s", m.Endpoint, detail)
	}
}

func judgeVersion(text string) (result Result, detail, remedy string) {
	v, err := version.ParseSemantic(text)
	if err != nil {
		return Unknown, fmt.Sprintf("version %q: %v", text, err), ""
	}
	atLeast := func(minimum string) bool { return v.AtLeast(version.MustParseSemantic(minimum)) }
	older := func(limit string) bool { return v.LessThan(version.MustParseSemantic(limit)) }
	switch {
	// The versions whose progress notifications the API server relies on
	// (k8s.io/apiserver/pkg/storage/feature/feature_support_checker.go); log and restore do, too.
	case older("3.4.31"), atLeast("3.5.0") && older("3.5.13"):
		return Problem, "version " + text + " may report the end of a watch too early, so that log and restore miss deletions", "upgrade etcd"
	// GHSA-q8m4-xhhv-38mg, GHSA-rfx7-8w68-q57q and GHSA-xg4h-6gfc-h4m8.
	case older("3.6.14"), atLeast("3.7.0-0") && older("3.7.1"):
		return Warning, "version " + text + " has known ways around its authentication", "upgrade etcd to 3.6.14, 3.7.1 or newer"
	}
	return OK, "version " + text, ""
}
