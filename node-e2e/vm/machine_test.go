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

func TestMissingProgramsAreNamedByPackage(t *testing.T) {
	err := requirePrograms(map[string]string{"sh": "dash", "no-such-program": "its-package"})
	if err == nil || !strings.Contains(err.Error(), "its-package") || strings.Contains(err.Error(), "dash") {
		t.Errorf("error %v, want one that names its-package alone", err)
	}
}

func TestFingerprintFollowsTheGuestFiles(t *testing.T) {
	files, err := guestFiles()
	if err != nil {
		t.Fatal(err)
	}
	before := fingerprint(files)
	if again := fingerprint(files); again != before {
		t.Errorf("the same files have fingerprints %s and %s", before, again)
	}
	files["guest.sh"] = append(files["guest.sh"], '\n')
	if changed := fingerprint(files); changed == before {
		t.Errorf("a changed guest.sh leaves the fingerprint %s", before)
	}
}
