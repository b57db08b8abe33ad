package guard

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Mode is what the guard does with an attempt that it would refuse.
type Mode string

const (
	// Enforce refuses it.
	Enforce Mode = "Enforce"
	// Audit counts and reports it and changes nothing.
	Audit Mode = "Audit"
	// Off does nothing; the kubelet behaves as stock.
	Off Mode = "Off"
)

// UnmarshalJSON takes a string, and false for Off: that is what YAML makes of
// the word without quotes.
func (m *Mode) UnmarshalJSON(data []byte) error {
	if bytes.Equal(data, []byte("false")) {
		*m = Off
		return nil
	}
	var s string
	if err := json.UnmarshalCaseSensitivePreserveInts(data, &s); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	*m = Mode(s)
	return nil
}

const (
	// ConfigAPIVersion and ConfigKind identify the configuration file.
	ConfigAPIVersion = "config.kubelet-guard.io/v1alpha1"
	// ConfigKind is the kind of the configuration file.
	ConfigKind = "GuardConfiguration"
)

// Configuration is the content of the file that --guard-config names. Fields
// that are left out have the values of DefaultConfiguration.
type Configuration struct {
	metav1.TypeMeta `json:",inline"`

	// Mode is Enforce, Audit or Off. Default: Enforce.
	Mode Mode `json:"mode,omitempty"`

	// PodSelector selects the pods to protect by their labels. It may not be
	// empty: a protected pod cannot be evicted, so protection has to be requested.
	// Default: matchLabels {kubelet-guard.io/explicit-deletion: required}.
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// AllowedCauses lists causes that are exempt from refusal. Default: none.
	AllowedCauses []Cause `json:"allowedCauses,omitempty"`

	// StateDir is an absolute path of a directory for the guard's state. Only root
	// may be able to write to it: any other writer could end protected pods, and make the
	// kubelet run a forged pod. Default: the folder "guard" in the kubelet's root
	// directory.
	StateDir string `json:"stateDir,omitempty"`
}

// DefaultConfiguration is what a kubelet without --guard-config uses.
func DefaultConfiguration() *Configuration {
	return &Configuration{
		TypeMeta:    metav1.TypeMeta{APIVersion: ConfigAPIVersion, Kind: ConfigKind},
		Mode:        Enforce,
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{ExplicitDeletionLabel: ExplicitDeletionRequired}},
	}
}

// LoadConfiguration reads and validates the file. An empty path means
// DefaultConfiguration. Every error names the file, and the field where there
// is one; a kubelet that gets an error must not start.
func LoadConfiguration(path string) (*Configuration, error) {
	if path == "" {
		return DefaultConfiguration(), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--guard-config: cannot read the guard configuration: %w (give the path of a readable %s file, or drop the flag to use the defaults)", err, ConfigKind)
	}
	config, err := ParseConfiguration(data)
	if err != nil {
		return nil, fmt.Errorf("--guard-config: %s: %w", path, err)
	}
	return config, nil
}

// ParseConfiguration decodes one YAML or JSON document strictly (unknown and
// repeated fields are errors), applies the defaults and validates the result.
func ParseConfiguration(data []byte) (*Configuration, error) {
	document, err := onlyDocument(data)
	if err != nil {
		return nil, err
	}
	// Not yaml.UnmarshalStrict: it takes fields in any case, so that a second
	// "Mode" would override the first in silence, and turns an unquoted yes in a
	// label value into "true".
	asJSON, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("not valid YAML: %w", err)
	}
	config := &Configuration{}
	wrongFields, err := json.UnmarshalStrict(asJSON, config)
	if err != nil {
		return nil, fmt.Errorf("not a valid %s: %w", ConfigKind, err)
	}
	if len(wrongFields) > 0 {
		return nil, fmt.Errorf("not a valid %s: %w", ConfigKind, utilerrors.NewAggregate(wrongFields))
	}
	defaults := DefaultConfiguration()
	if config.Mode == "" {
		config.Mode = defaults.Mode
	}
	if config.PodSelector == nil {
		config.PodSelector = defaults.PodSelector
	}
	if errs := config.Validate(); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return config, nil
}

// onlyDocument returns the single YAML document in data. A second one would be
// ignored in silence by the decoder.
func onlyDocument(data []byte) ([]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	var document []byte
	for {
		next, err := reader.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("not valid YAML: %w", err)
		}
		if isBlank(next) {
			continue
		}
		if document != nil {
			return nil, fmt.Errorf("more than one YAML document: keep one %s per file", ConfigKind)
		}
		document = next
	}
	if document == nil {
		return nil, fmt.Errorf("the file is empty: write apiVersion: %s and kind: %s, or drop the flag to use the defaults", ConfigAPIVersion, ConfigKind)
	}
	return document, nil
}

// isBlank reports whether a YAML document holds nothing but comments, such as
// the licence above the first separator.
func isBlank(document []byte) bool {
	for line := range bytes.Lines(document) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

// Validate returns one error per field that is wrong.
func (c *Configuration) Validate() field.ErrorList {
	var errs field.ErrorList
	if c.APIVersion != ConfigAPIVersion {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{ConfigAPIVersion}))
	}
	if c.Kind != ConfigKind {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{ConfigKind}))
	}
	switch c.Mode {
	case Enforce, Audit, Off:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("mode"), c.Mode, []Mode{Enforce, Audit, Off}))
	}
	selector := field.NewPath("podSelector")
	switch {
	case c.PodSelector == nil, len(c.PodSelector.MatchLabels) == 0 && len(c.PodSelector.MatchExpressions) == 0:
		errs = append(errs, field.Required(selector, "an empty selector would protect every pod of the node from eviction; name a label, or leave podSelector out to use "+ExplicitDeletionLabel+": "+ExplicitDeletionRequired))
	default:
		errs = append(errs, metav1validation.ValidateLabelSelector(c.PodSelector, metav1validation.LabelSelectorValidationOptions{}, selector)...)
	}
	for i, cause := range c.AllowedCauses {
		path := field.NewPath("allowedCauses").Index(i)
		if !slices.Contains(causes, cause) {
			errs = append(errs, field.NotSupported(path, cause, causes))
		} else if slices.Contains(c.AllowedCauses[:i], cause) {
			errs = append(errs, field.Duplicate(path, cause))
		}
	}
	if c.StateDir != "" && !filepath.IsAbs(c.StateDir) {
		errs = append(errs, field.Invalid(field.NewPath("stateDir"), c.StateDir, "must be an absolute path"))
	}
	return errs
}
