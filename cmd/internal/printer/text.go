package printer

import (
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
)

// None stands in a cell without a value.
const None = "<none>"

// Age is how long ago t was, as kubectl shows ages.
func Age(now, t time.Time) string {
	if t.IsZero() {
		return None
	}
	return duration.HumanDuration(now.Sub(t))
}

// Seconds of a duration for humans: tenths below a minute.
func Seconds(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// YesNo returns "yes" or "no".
func YesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// OrNone returns the text, or None for an empty one.
func OrNone(text string) string {
	if text == "" {
		return None
	}
	return text
}

// textWidth is how wide running text may be.
const textWidth = 98

// Wrap prints text after a label, broken at spaces and indented by the width of
// the label.
func Wrap(out io.Writer, label, text string) {
	line := label
	empty := true
	indent := strings.Repeat(" ", len(label))
	for _, word := range strings.Fields(text) {
		if !empty && len(line)+1+len(word) > textWidth {
			fmt.Fprintln(out, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	fmt.Fprintln(out, line)
}
