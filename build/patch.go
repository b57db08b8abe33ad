package build

import (
	"bufio"
	"bytes"
	"fmt"
	"net/textproto"
	"regexp"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
)

// Patch is one file of a series, in the form of git format-patch.
type Patch struct {
	// Name is the file name, for example kubelet-keep-vanished-pods.patch.
	Name string
	// Data are the exact bytes of the file.
	Data []byte
	// Subject is the first line of the commit message, without [PATCH].
	Subject string
	// Body is the commit message without the subject and the trailers.
	Body string
	// Trailers are the Key: value lines that end the message, by key. A value that
	// goes on in indented lines is joined with blanks.
	Trailers map[string]string
	// Files are the changed files in the order of the patch.
	Files []FileChange

	// changes are those of all files, hunk by hunk, in the order of the patch.
	changes []Hook
}

// FileChange counts what a patch does to one file.
type FileChange struct {
	// Path is the slash-separated path in the Kubernetes tree.
	Path string
	// Added and Removed count lines.
	Added, Removed int
	// New is set for a file that the patch creates: its lines are no upstream lines.
	New bool
}

// Added returns the number of lines that the patch adds.
func (p Patch) Added() int { return p.sum(func(f FileChange) int { return f.Added }) }

// Removed returns the number of lines that the patch removes.
func (p Patch) Removed() int { return p.sum(func(f FileChange) int { return f.Removed }) }

// UpstreamLines returns the number of lines added to and removed from files that
// exist upstream: what a rebase has to carry.
func (p Patch) UpstreamLines() int {
	return p.sum(func(f FileChange) int {
		if f.New {
			return 0
		}
		return f.Added + f.Removed
	})
}

func (p Patch) sum(lines func(FileChange) int) (n int) {
	for _, f := range p.Files {
		n += lines(f)
	}
	return n
}

var nameFiller = regexp.MustCompile(`[^a-z0-9]+`)

// ParsePatch reads one patch in the form of git format-patch. It checks the form
// only; git checks whether it applies.
func ParsePatch(name string, data []byte) (Patch, error) {
	p := Patch{Name: name, Data: data, Trailers: map[string]string{}}
	if !bytes.HasPrefix(data, []byte("From ")) {
		return p, fmt.Errorf("%s: not in the form of git format-patch; make patches with guard-build patches export", name)
	}
	files, preamble, err := gitdiff.Parse(bytes.NewReader(data))
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	header, err := gitdiff.ParsePatchHeader(preamble, gitdiff.WithSubjectCleanMode(gitdiff.SubjectCleanPatchOnly))
	switch {
	case err != nil:
		return p, fmt.Errorf("%s: %w", name, err)
	case header.Title == "":
		return p, fmt.Errorf("%s: no subject", name)
	case len(files) == 0:
		return p, fmt.Errorf("%s: changes nothing", name)
	}
	p.Subject = header.Title
	p.Body, p.Trailers = splitTrailers(header.Body)
	for _, f := range files {
		if f.IsRename || f.IsCopy || f.IsDelete || f.IsBinary {
			return p, fmt.Errorf("%s: %s: hooks do not rename, copy or remove files, and change no binary ones", name, f.OldName)
		}
		change := FileChange{Path: f.NewName, New: f.IsNew}
		for _, fragment := range f.TextFragments {
			change.Added += int(fragment.LinesAdded)
			change.Removed += int(fragment.LinesDeleted)
			p.changes = append(p.changes, parseHook(name, f.NewName, fragment))
		}
		p.Files = append(p.Files, change)
	}
	return p, nil
}

// splitTrailers takes the last paragraph off when it is made of trailers: they have the form
// of a mail's headers.
func splitTrailers(message string) (body string, trailers map[string]string) {
	trailers = map[string]string{}
	message = "\n\n" + message
	i := strings.LastIndex(message, "\n\n")
	header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(message[i+2:] + "\n\n"))).ReadMIMEHeader()
	if err != nil {
		return strings.TrimSpace(message), trailers
	}
	for key, values := range header {
		trailers[key] = strings.Join(values, " ")
	}
	return strings.TrimSpace(message[:i]), trailers
}

// patchName turns a subject into a file name: descriptive and without a number, so
// that a new patch in the middle renames no other.
func patchName(subject string) string {
	name := strings.Trim(nameFiller.ReplaceAllString(strings.ToLower(subject), "-"), "-")
	const longest = 72
	if len(name) > longest {
		name = name[:longest]
		if i := strings.LastIndexByte(name, '-'); i > longest/2 {
			name = name[:i]
		}
	}
	return name + ".patch"
}
