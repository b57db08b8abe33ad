package admission

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseOverride(t *testing.T) {
	tests := []struct {
		name, value string
		want        OverrideValue
		wantErr     string
	}{
		{name: "expiry and reason", value: "2026-05-04T10:30:00Z ticket 17", want: OverrideValue{time.Date(2026, 5, 4, 10, 30, 0, 0, time.UTC), "ticket 17"}},
		{name: "an expiry with an offset", value: "2026-05-04T12:30:00+02:00 x", want: OverrideValue{time.Date(2026, 5, 4, 10, 30, 0, 0, time.UTC), "x"}},
		{name: "blanks around both", value: "  2026-05-04T10:30:00Z   x ", want: OverrideValue{time.Date(2026, 5, 4, 10, 30, 0, 0, time.UTC), "x"}},
		{name: "the longest time ahead", value: "2026-05-05T10:00:00Z x", want: OverrideValue{now.Add(24 * time.Hour), "x"}},
		{name: "nothing", value: "", wantErr: `"" does not start with a time as in RFC 3339; write "2026-05-04T10:15:00Z <reason>"`},
		{name: "a reason without an expiry", value: "ticket 17", wantErr: `"ticket 17" does not start with a time as in RFC 3339; write "2026-05-04T10:15:00Z <reason>"`},
		{name: "an expiry without a reason", value: "2026-05-04T10:30:00Z", wantErr: `"2026-05-04T10:30:00Z" has no reason; write "2026-05-04T10:15:00Z <reason>"`},
		{name: "the moment of the expiry", value: "2026-05-04T10:00:00Z x", wantErr: "it expired at 2026-05-04T10:00:00Z, and it is 2026-05-04T10:00:00Z now"},
		{name: "too far ahead", value: "2026-05-05T10:00:01Z x", wantErr: `it expires at 2026-05-05T10:00:01Z, which is more than 24h0m0s ahead; write "2026-05-04T10:15:00Z <reason>"`},
		{name: "a novel", value: "2026-05-04T10:30:00Z " + strings.Repeat("x", 513), wantErr: "its reason has 513 bytes, 512 are allowed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseOverride(test.value, now, DefaultOverrideLimit)
			if test.wantErr != "" {
				require.EqualError(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.True(t, test.want.Expires.Equal(got.Expires), got.Expires)
			require.Equal(t, test.want.Reason, got.Reason)
		})
	}
}

func TestParseModes(t *testing.T) {
	got, err := ParseModes("Audit", map[string]string{"Replicas": "Enforce"})
	require.NoError(t, err)
	require.Equal(t, Modes{Default: Audit, ByRule: map[RuleName]Mode{Replicas: Enforce}}, got)

	for name, test := range map[string]struct {
		byDefault string
		byRule    map[string]string
		want      string
	}{
		"unknown mode":           {"audit", nil, `unknown mode "audit"; the modes are Enforce and Audit`},
		"unknown mode of a rule": {"Audit", map[string]string{"Replicas": ""}, `rule Replicas: unknown mode ""; the modes are Enforce and Audit`},
		"unknown rule":           {"Audit", map[string]string{"Replica": "Audit"}, `unknown rule "Replica"; the rules are CascadingDeletion, Replicas, ResourceDeletion, OperationWindow, PodDeletion, PodDeletionRecord, DisruptionBudget, NodeDeletion, Override, Protection`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseModes(test.byDefault, test.byRule)
			require.EqualError(t, err, test.want)
		})
	}
}
