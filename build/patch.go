package build

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"sort"
	"strings"
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

	// hunks are the changes of all files, in the order of the patch.
	hunks []hunk
}

// hunk is one place that a patch changes.
type hunk struct {
	// path is the slash-separated path in the Kubernetes tree.
	path string
	// header is the line that begins with @@, lines are those after it as they are in the
	// diff.
	header string
	lines  []string
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
func (p Patch) Added() int {
	n := 0
	for _, f := range p.Files {
		n += f.Added
	}
	return n
}

// Removed returns the number of lines that the patch removes.
func (p Patch) Removed() int {
	n := 0
	for _, f := range p.Files {
		n += f.Removed
	}
	return n
}

// UpstreamLines returns the number of lines added to and removed from files that
// exist upstream: what a rebase has to carry.
func (p Patch) UpstreamLines() int {
	n := 0
	for _, f := range p.Files {
		if !f.New {
			n += f.Added + f.Removed
		}
	}
	return n
}

var (
	subjectPrefix = regexp.MustCompile(`^\[PATCH[^\]]*\] *`)
	trailerLine   = regexp.MustCompile(`^([A-Z][A-Za-z]*(?:-[A-Za-z]+)*): ?(.*)$`)
	nameFiller    = regexp.MustCompile(`[^a-z0-9]+`)
)

// ParsePatch reads one patch in the form of git format-patch. It checks the shape
// only; whether it applies is for git to say.
func ParsePatch(name string, data []byte) (Patch, error) {
	p := Patch{Name: name, Data: data, Trailers: map[string]string{}}
	header, rest, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok || !bytes.HasPrefix(header, []byte("From ")) {
		return p, fmt.Errorf("%s: not in the form of git format-patch; make patches with guard-build patches export", name)
	}
	inSubject := false
	for _, line := range strings.Split(string(header), "\n") {
		switch {
		case strings.HasPrefix(line, "Subject: "):
			p.Subject = strings.TrimPrefix(line, "Subject: ")
			inSubject = true
		case inSubject && strings.HasPrefix(line, " "):
			p.Subject += line
		default:
			inSubject = false
		}
	}
	p.Subject = subjectPrefix.ReplaceAllString(p.Subject, "")
	if p.Subject == "" {
		return p, fmt.Errorf("%s: no subject", name)
	}

	message, diff := string(rest), ""
	if strings.HasPrefix(message, "diff --git ") {
		message, diff = "", message
	} else if i := strings.Index(message, "\ndiff --git "); i >= 0 {
		message, diff = message[:i+1], message[i+1:]
	}
	// With --no-stat, git still writes the line that parts message and diff.
	message = strings.TrimRight(message, "\n")
	message = strings.TrimSuffix(message, "---")
	p.Body, p.Trailers = splitTrailers(strings.TrimSpace(message))
	if err := p.parseDiff(diff); err != nil {
		return p, err
	}
	return p, nil
}

// splitTrailers takes the last paragraph off when every line of it is a trailer.
func splitTrailers(message string) (body string, trailers map[string]string) {
	trailers = map[string]string{}
	i := strings.LastIndex(message, "\n\n")
	last := message[max(i, 0):]
	key := ""
	for _, line := range strings.Split(strings.TrimSpace(last), "\n") {
		if key != "" && strings.HasPrefix(line, " ") {
			trailers[key] += " " + strings.TrimSpace(line)
			continue
		}
		m := trailerLine.FindStringSubmatch(line)
		if m == nil {
			return message, map[string]string{}
		}
		key = m[1]
		trailers[key] = strings.TrimSpace(m[2])
	}
	if i < 0 {
		return "", trailers
	}
	return strings.TrimSpace(message[:i]), trailers
}

// parseDiff finds the hunks and counts changed lines. It follows the line counts of the hunk headers,
// so that a removed line that starts with "--" is not taken for a file header.
func (p *Patch) parseDiff(diff string) error {
	if diff == "" {
		return fmt.Errorf("%s: changes nothing", p.Name)
	}
	var file *FileChange
	oldLeft, newLeft := 0, 0
	scanner := bufio.NewScanner(strings.NewReader(diff))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		if oldLeft > 0 || newLeft > 0 {
			h := &p.hunks[len(p.hunks)-1]
			h.lines = append(h.lines, line)
			switch {
			case strings.HasPrefix(line, "+"):
				file.Added++
				newLeft--
			case strings.HasPrefix(line, "-"):
				file.Removed++
				oldLeft--
			case strings.HasPrefix(line, `\`):
			default:
				oldLeft--
				newLeft--
			}
			continue
		}
		switch {
		case strings.HasPrefix(line, "diff --git a/"):
			_, path, _ := strings.Cut(line, " b/")
			p.Files = append(p.Files, FileChange{Path: path})
			file = &p.Files[len(p.Files)-1]
		case strings.HasPrefix(line, "new file mode") && file != nil:
			file.New = true
		case strings.HasPrefix(line, "rename ") || strings.HasPrefix(line, "GIT binary patch"):
			return fmt.Errorf("%s: renames and binary files are not hooks", p.Name)
		case strings.HasPrefix(line, "@@ ") && file != nil:
			var err error
			if oldLeft, newLeft, err = hunkLengths(line); err != nil {
				return fmt.Errorf("%s: %s: %w", p.Name, file.Path, err)
			}
			p.hunks = append(p.hunks, hunk{path: file.Path, header: line})
		}
	}
	if oldLeft > 0 || newLeft > 0 {
		return fmt.Errorf("%s: the last hunk of %s is cut short", p.Name, file.Path)
	}
	return scanner.Err()
}

var hunkHeader = regexp.MustCompile(`^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@`)

func hunkLengths(line string) (oldLines, newLines int, err error) {
	m := hunkHeader.FindStringSubmatch(line)
	if m == nil {
		return 0, 0, fmt.Errorf("malformed hunk header %q", line)
	}
	length := func(s string) int {
		if s == "" {
			return 1
		}
		n := 0
		for _, c := range s {
			n = n*10 + int(c-'0')
		}
		return n
	}
	return length(m[1]), length(m[2]), nil
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

// touched returns the files that the patches change, sorted.
func (s Series) touched() []string {
	seen := map[string]bool{}
	var out []string
	for _, p := range s.Patches {
		for _, f := range p.Files {
			if !seen[f.Path] {
				seen[f.Path] = true
				out = append(out, f.Path)
			}
		}
	}
	sort.Strings(out)
	return out
}
