package vm

import (
	"context"
	"io"
	"strings"
	"testing"
)

func TestRunRefusesWhatTheGuestCannotRead(t *testing.T) {
	_, err := Run(context.Background(), Config{Command: []string{"program", "two\nlines"}, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), `"two\nlines"`) {
		t.Errorf("Run with a newline in an argument: error %v, want one that quotes the argument", err)
	}
}
