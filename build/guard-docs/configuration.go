package main

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"kubelet-guard.io/pkg/kubelet/guard"
	"sigs.k8s.io/yaml"
)

const (
	guardPackage      = "pkg/kubelet/guard"
	configurationPath = "docs/configuration.md"
)

// examples has a fragment for every field, the place for what a comment in the
// code is too short for.
var examples = map[string]string{
	"mode":          "mode: Audit\n",
	"podSelector":   "podSelector:\n  matchLabels:\n    tier: database\n  matchExpressions:\n  - key: environment\n    operator: In\n    values: [production, staging]\n",
	"allowedCauses": "allowedCauses: [NodeShutdown]\n",
	"stateDir":      "stateDir: /var/lib/kubelet-guard\n",
}

// header is what an example lacks to be a whole file.
const header = "apiVersion: " + guard.ConfigAPIVersion + "\nkind: " + guard.ConfigKind + "\n"

// source is the documentation of the guard package.
type source struct{ types map[string]*doc.Type }

// readSource parses the package in a folder.
func readSource(folder string) (*source, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no Go files in %s: run this from the root of the repository or use -root", folder)
	}
	parsed, err := doc.NewFromFiles(fset, files, "kubelet-guard.io/"+guardPackage)
	if err != nil {
		return nil, err
	}
	s := &source{types: map[string]*doc.Type{}}
	for _, t := range parsed.Types {
		s.types[t.Name] = t
	}
	return s, nil
}

// configurationPage returns the page with the text between its markers replaced.
func (s *source) configurationPage(page string) (string, error) {
	for _, part := range []struct {
		name  string
		write func() (string, error)
	}{
		{"defaults", defaults},
		{"fields", s.fields},
		{"causes", func() (string, error) { return s.table("cause", "meaning", "Cause") }},
	} {
		text, err := part.write()
		if err != nil {
			return "", err
		}
		if page, err = replacePart(page, part.name, text); err != nil {
			return "", err
		}
	}
	return page, nil
}

// defaults returns the file that means the same as no file.
func defaults() (string, error) {
	text, err := yaml.Marshal(guard.DefaultConfiguration())
	if err != nil {
		return "", err
	}
	return "```yaml\n" + string(text) + "```\n", nil
}

// fields describes every field of the configuration, its default too where the page's
// default file lacks it.
func (s *source) fields() (string, error) {
	comments, err := s.fieldComments("Configuration")
	if err != nil {
		return "", err
	}
	whole, err := yaml.Marshal(guard.DefaultConfiguration())
	if err != nil {
		return "", err
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(whole, &values); err != nil {
		return "", err
	}
	var names []string
	configuration := reflect.TypeFor[guard.Configuration]()
	for i := range configuration.NumField() {
		if name, _, _ := strings.Cut(configuration.Field(i).Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
	}
	var text strings.Builder
	for i, name := range names {
		if i > 0 {
			text.WriteString("\n")
		}
		comment, example := comments[name], examples[name]
		if comment == "" || example == "" {
			return "", fmt.Errorf("field %s needs a comment in %s and an example in build/guard-docs/configuration.go", name, guardPackage)
		}
		if _, err := guard.ParseConfiguration([]byte(header + example)); err != nil {
			return "", fmt.Errorf("the example of %s: %w", name, err)
		}
		comment, byDefault, _ := strings.Cut(comment, "Default: ")
		fmt.Fprintf(&text, "### %s\n\n%s\n", name, strings.TrimSpace(comment))
		if name == "mode" {
			modes, err := s.table("mode", "what the guard does with an attempt that it would refuse", "Mode")
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&text, "\n%s", modes)
		}
		if _, ok := values[name]; !ok && byDefault != "" {
			fmt.Fprintf(&text, "\nDefault: %s\n", byDefault)
		}
		fmt.Fprintf(&text, "\n```yaml\n%s```\n", example)
	}
	return text.String(), nil
}

// fieldComments returns the comments of a struct's fields by JSON name, without
// the field's own name in front.
func (s *source) fieldComments(name string) (map[string]string, error) {
	t := s.types[name]
	if t == nil {
		return nil, fmt.Errorf("%s has no type %s", guardPackage, name)
	}
	structure, ok := t.Decl.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType)
	if !ok {
		return nil, fmt.Errorf("%s.%s is no struct", guardPackage, name)
	}
	comments := map[string]string{}
	for _, field := range structure.Fields.List {
		if field.Tag == nil {
			continue
		}
		tag, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			return nil, err
		}
		if jsonName, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ","); jsonName != "" {
			comments[jsonName] = strings.TrimSpace(field.Doc.Text())
		}
	}
	return comments, nil
}

// table lists the constants of a string type with their comments.
func (s *source) table(heading, column, name string) (string, error) {
	t := s.types[name]
	if t == nil {
		return "", fmt.Errorf("%s has no type %s", guardPackage, name)
	}
	listed := map[string]bool{}
	for _, cause := range guard.Causes() {
		listed[string(cause)] = true
	}
	var text strings.Builder
	fmt.Fprintf(&text, "| %s | %s |\n|---|---|\n", heading, column)
	rows := 0
	for _, group := range t.Consts {
		for _, spec := range group.Decl.Specs {
			constant, ok := spec.(*ast.ValueSpec)
			if !ok || constant.Doc == nil {
				continue
			}
			value, err := strconv.Unquote(constant.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				return "", err
			}
			if name == "Cause" && !listed[value] {
				continue
			}
			meaning := strings.Join(strings.Fields(constant.Doc.Text()), " ")
			meaning = strings.TrimPrefix(strings.TrimPrefix(meaning, constant.Names[0].Name), ":")
			meaning = strings.TrimPrefix(strings.TrimSpace(meaning), "is ")
			meaning = strings.TrimSuffix(meaning, ".")
			fmt.Fprintf(&text, "| `%s` | %s |\n", value, meaning)
			rows++
		}
	}
	if rows == 0 || name == "Cause" && rows != len(listed) {
		return "", fmt.Errorf("%s: %d documented constants of type %s", guardPackage, rows, name)
	}
	return text.String(), nil
}
