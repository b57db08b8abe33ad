package kind

import (
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/kind/pkg/log"
)

// logger passes kind's messages on, without its details.
type logger struct{ to io.Writer }

var _ log.Logger = logger{}

func (l logger) line(message string) {
	if message = strings.TrimSpace(message); message != "" {
		fmt.Fprintln(l.to, message)
	}
}

func (l logger) Warn(message string)               { l.line(message) }
func (l logger) Warnf(format string, args ...any)  { l.line(fmt.Sprintf(format, args...)) }
func (l logger) Error(message string)              { l.line(message) }
func (l logger) Errorf(format string, args ...any) { l.line(fmt.Sprintf(format, args...)) }

// V implements log.Logger.
func (l logger) V(level log.Level) log.InfoLogger {
	if level > 0 {
		return log.NoopInfoLogger{}
	}
	return infoLogger{l}
}

type infoLogger struct{ logger }

func (l infoLogger) Info(message string)              { l.line(message) }
func (l infoLogger) Infof(format string, args ...any) { l.line(fmt.Sprintf(format, args...)) }

// Enabled implements log.InfoLogger.
func (l infoLogger) Enabled() bool { return true }
