package main

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

const (
	rulesPath          = "manifests/monitoring/rules/kubelet-guard.yaml"
	prometheusRulePath = "manifests/monitoring/operator/prometheusrule.yaml"
)

// rules are the alerts as Prometheus reads them.
type rules struct {
	Groups []ruleGroup `json:"groups"`
}

type ruleGroup struct {
	Name  string `json:"name"`
	Rules []rule `json:"rules"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// readRules reads the rules below the root. Unknown fields are errors.
func readRules(root string) (rules, error) {
	data, err := os.ReadFile(filepath.Join(root, rulesPath))
	if err != nil {
		return rules{}, err
	}
	var r rules
	if err := yaml.UnmarshalStrict(data, &r); err != nil {
		return rules{}, fmt.Errorf("%s: %w", rulesPath, err)
	}
	return r, nil
}

// prometheusRule returns the rules as the object of the Prometheus operator.
func prometheusRule(root string) (string, error) {
	spec, err := readRules(root)
	if err != nil {
		return "", err
	}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "monitoring.coreos.com/v1",
		"kind":       "PrometheusRule",
		"metadata": map[string]any{
			"name":      "kubelet-guard",
			"namespace": "kubelet-guard-system",
			"labels":    map[string]string{"app.kubernetes.io/name": "kubelet-guard"},
		},
		"spec": spec,
	})
	if err != nil {
		return "", err
	}
	return "# Written by make generate from ../rules/kubelet-guard.yaml; do not edit.\n" + string(text), nil
}
