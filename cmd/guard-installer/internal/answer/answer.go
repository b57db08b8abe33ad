// Package answer has the answer to a question that others decide: systemd, the
// container runtime, the guard, a disk. An error is no answer, and so neither yes nor
// no. The caller decides what follows from each of the three; a change of a node that cannot be
// judged is kept.
package answer

import "errors"

// Answer is yes, no, or unknown with a reason. The zero value is unknown.
type Answer struct {
	state state
	why   error
}

type state int

const (
	unknown state = iota
	yes
	no
)

// Of is the answer to a question that was answered.
func Of(is bool) Answer {
	if is {
		return Yes()
	}
	return No()
}

// Check is Of where the error is nil, and unknown otherwise.
func Check(is bool, err error) Answer {
	if err != nil {
		return Unknown(err)
	}
	return Of(is)
}

// Yes is the answer yes.
func Yes() Answer { return Answer{state: yes} }

// No is the answer no.
func No() Answer { return Answer{state: no} }

// Unknown is the answer that nobody gives. why is the reason.
func Unknown(why error) Answer { return Answer{why: why} }

// IsYes reports whether the answer is known, and yes.
func (a Answer) IsYes() bool { return a.state == yes }

// IsNo reports whether the answer is known, and no.
func (a Answer) IsNo() bool { return a.state == no }

// Err explains why the answer is unknown, and is nil for one that is known.
func (a Answer) Err() error {
	switch {
	case a.state != unknown:
		return nil
	case a.why == nil:
		return errors.New("nobody was asked")
	default:
		return a.why
	}
}

// And is yes when both are, and no when one of them is, whatever the other may be.
func (a Answer) And(b Answer) Answer {
	switch {
	case a.IsNo() || b.IsNo():
		return No()
	case a.state == unknown:
		return a
	default:
		return b
	}
}
