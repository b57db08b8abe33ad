package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules"
)

const (
	rulePages    = "docs/control-plane"
	rulePackages = "pkg/admission/rules"
)

// specificationHeadings are those of the doc comments of rules that pages print. The last is one of
// two.
var specificationHeadings = []string{"Objects", "Refused when", "Let through when", "Fails closed because", "Fails open because"}

// rulePage returns the page of the rule with the text between its markers replaced.
func rulePage(root string, rule rules.Name, page string) (string, error) {
	text, err := specification(filepath.Join(root, rulePackages, rule.Package()))
	if err != nil {
		return "", err
	}
	return replacePart(page, "specification", text+"\n"+entryTable(rule))
}

// specification returns the specification of the rule in the folder, from its doc.go.
func specification(folder string) (string, error) {
	path := filepath.Join(folder, "doc.go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		return "", err
	}
	var (
		text     strings.Builder
		headings []string
	)
	for section := range strings.SplitSeq("\n"+file.Doc.Text(), "\n# ") {
		heading, body, _ := strings.Cut(section, "\n")
		if !slices.Contains(specificationHeadings, heading) {
			continue
		}
		headings = append(headings, heading)
		// A reason goes on with the sentence of its heading.
		gap := "\n\n"
		if strings.HasSuffix(heading, "because") {
			gap = " "
		}
		body = strings.ReplaceAll("\n"+body, "\n  ", "\n")
		fmt.Fprintf(&text, "**%s**%s%s\n\n", heading, gap, strings.TrimSpace(body))
	}
	if !slices.Equal(headings[:min(len(headings), 3)], specificationHeadings[:3]) || len(headings) != 4 {
		return "", fmt.Errorf("%s: the headings of a specification are %q, then one of %q; found %q", path, specificationHeadings[:3], specificationHeadings[3:], headings)
	}
	return strings.TrimRight(text.String(), "\n") + "\n", nil
}

// entryTable returns the rows of the table that are about the rule.
func entryTable(rule rules.Name) string {
	var text strings.Builder
	text.WriteString("| path of the webhook | requests | not judged | because |\n|---|---|---|---|\n")
	for _, row := range rules.Table() {
		if row.Rule == rule {
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", row.Path, row.Objects, unjudged(row.FailurePolicy), row.Because)
		}
	}
	return text.String()
}

func unjudged(policy admission.FailurePolicy) string {
	if policy == admission.FailClosed {
		return "refused"
	}
	return "let through"
}

// specifiedRules returns the rules that have a package, in the order of the table.
func specifiedRules() []rules.Name {
	var names []rules.Name
	for _, row := range rules.Table() {
		if row.Rule.Package() != "" && !slices.Contains(names, row.Rule) {
			names = append(names, row.Rule)
		}
	}
	return names
}

// replacePart returns the page with the text between the markers of the part replaced.
func replacePart(page, part, text string) (string, error) {
	first, last := "<!-- begin "+part+": written by make generate -->\n", "<!-- end "+part+" -->\n"
	head, rest, found := strings.Cut(page, first)
	if !found {
		return "", fmt.Errorf("the line %q is missing", strings.TrimSpace(first))
	}
	_, tail, found := strings.Cut(rest, last)
	if !found {
		return "", fmt.Errorf("the line %q is missing", strings.TrimSpace(last))
	}
	return head + first + "\n" + text + "\n" + last + tail, nil
}
