package pods

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// HoldTimes returns when the first hold was made and the newest attempt.
func HoldTimes(holds []guard.HoldState) (since, last time.Time) {
	for _, hold := range holds {
		if since.IsZero() || hold.Since.Before(since) {
			since = hold.Since
		}
		if hold.LastAttempt.After(last) {
			last = hold.LastAttempt
		}
	}
	return since, last
}

// CausesOf names the oldest cause and counts the others, or names all.
func CausesOf(holds []guard.HoldState, all bool) string {
	sorted := append([]guard.HoldState(nil), holds...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Since.Before(sorted[j].Since) })
	var names []string
	for _, hold := range sorted {
		names = append(names, string(hold.Cause))
	}
	if !all && len(names) > 1 {
		return fmt.Sprintf("%s +%d", names[0], len(names)-1)
	}
	return strings.Join(names, ",")
}

// MessagesOf joins the messages of holds.
func MessagesOf(holds []guard.HoldState) string {
	var messages []string
	for _, hold := range holds {
		if hold.Message != "" {
			messages = append(messages, hold.Message)
		}
	}
	return strings.Join(messages, "; ")
}
