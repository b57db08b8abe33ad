package guard

// Facts is all that a decision depends on.
type Facts struct {
	// Mode of the guard.
	Mode Mode
	// Protected: the pod matches the selector and comes from the API source.
	Protected bool
	// Evidence: the deletion is explicit.
	Evidence bool
	// Exempted: an earlier decision let the attempt through, see exemption.
	Exempted bool
	// CauseAllowed: the cause is in allowedCauses.
	CauseAllowed bool
	// Alive: the attempt would stop something. True when that is unknown.
	Alive bool
}

// Verdict is the outcome of a decision. The zero value is invalid.
type Verdict int

const (
	// Unprotected: the kubelet takes the stock path.
	Unprotected Verdict = iota + 1
	// AllowedByEvidence: the deletion is explicit.
	AllowedByEvidence
	// AllowedByExemption: see Facts.Exempted.
	AllowedByExemption
	// AllowedByConfiguration: the cause is in allowedCauses.
	AllowedByConfiguration
	// AllowedNothingRuns: there is nothing to stop.
	AllowedNothingRuns
	// AllowedByAudit: Enforce would have refused.
	AllowedByAudit
	// Refused: the pod keeps running.
	Refused
)

// Decide is the whole policy. It is pure: no clock, no client, no log.
func Decide(f Facts) Verdict {
	switch {
	case f.Mode == Off || !f.Protected:
		return Unprotected
	case f.Evidence:
		return AllowedByEvidence
	case f.Exempted:
		return AllowedByExemption
	case f.CauseAllowed:
		return AllowedByConfiguration
	case !f.Alive:
		return AllowedNothingRuns
	case f.Mode == Audit:
		return AllowedByAudit
	default:
		return Refused
	}
}
