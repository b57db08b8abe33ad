package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"sigs.k8s.io/yaml"
)

// property is a value of the chart, as far as values.yaml and the README show it.
type property struct {
	Description string          `json:"description"`
	Type        string          `json:"type"`
	Enum        []string        `json:"enum"`
	Default     json.RawMessage `json:"default"`
	Properties  properties      `json:"properties"`
}

// properties are in the order of the schema.
type properties []struct {
	name string
	property
}

// UnmarshalJSON reads an object without losing the order of its fields.
func (p *properties) UnmarshalJSON(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	if _, err := decoder.Token(); err != nil {
		return err
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		var value property
		if err := decoder.Decode(&value); err != nil {
			return fmt.Errorf("%v: %w", name, err)
		}
		*p = append(*p, struct {
			name string
			property
		}{name.(string), value})
	}
	return nil
}

// readSchema reads the schema of the values.
func readSchema(path string) (property, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return property{}, err
	}
	var schema property
	if err := json.Unmarshal(text, &schema); err != nil {
		return property{}, fmt.Errorf("%s: %w", path, err)
	}
	return schema, nil
}

// lineWidth is that of comments in values.yaml.
const lineWidth = 100

// valuesFile returns values.yaml: each value with its default and its description.
func (p property) valuesFile() ([]byte, error) {
	text := bytes.NewBufferString("# Written by make generate from values.schema.json; do not edit.\n")
	err := p.Properties.write(text, "")
	return text.Bytes(), err
}

func (p properties) write(text *bytes.Buffer, indent string) error {
	for _, value := range p {
		if value.Description == "" {
			return fmt.Errorf("values.schema.json: %s has no description", value.name)
		}
		text.WriteByte('\n')
		for _, line := range wrap(value.Description, lineWidth-len(indent)-len("# ")) {
			fmt.Fprintf(text, "%s# %s\n", indent, line)
		}
		if len(value.Properties) > 0 && value.Default == nil {
			fmt.Fprintf(text, "%s%s:", indent, value.name)
			if err := value.Properties.write(text, indent+"  "); err != nil {
				return err
			}
			continue
		}
		if value.Default == nil {
			return fmt.Errorf("values.schema.json: %s has no default", value.name)
		}
		block, err := yaml.JSONToYAML([]byte(`{"` + value.name + `":` + string(value.Default) + `}`))
		if err != nil {
			return fmt.Errorf("values.schema.json: %s: %w", value.name, err)
		}
		for line := range strings.Lines(string(block)) {
			text.WriteString(indent + line)
		}
	}
	return nil
}

// wrap breaks a text into lines of at most width characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// The table of values in the README is between these.
const (
	valuesBegin = "<!-- begin values: written by make generate from values.schema.json -->"
	valuesEnd   = "<!-- end values -->"
)

// readme returns the README with the table of values.
func (p property) readme(page []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(valuesBegin))
	_, after, foundEnd := bytes.Cut(rest, []byte(valuesEnd))
	if !found || !foundEnd {
		return nil, errors.New("README.md: no place for the values, between " + valuesBegin + " and " + valuesEnd)
	}
	text := bytes.NewBuffer(bytes.Clone(before))
	text.WriteString(valuesBegin + "\n\n| value | type | default | |\n|---|---|---|---|\n")
	p.Properties.rows(text, "")
	text.WriteString("\n" + valuesEnd)
	text.Write(after)
	return text.Bytes(), nil
}

func (p properties) rows(text *bytes.Buffer, prefix string) {
	for _, value := range p {
		name := prefix + value.name
		if value.Default == nil {
			fmt.Fprintf(text, "| `%s` | %s | | %s |\n", name, value.Type, value.Description)
			value.Properties.rows(text, name+".")
			continue
		}
		typeName := value.Type
		if len(value.Enum) > 0 {
			typeName = "`" + strings.Join(value.Enum, "` or `") + "`"
		}
		fmt.Fprintf(text, "| `%s` | %s | `%s` | %s |\n", name, typeName, value.Default, value.Description)
	}
}
