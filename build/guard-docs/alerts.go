package main

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

const (
	alertsPath         = "manifests/monitoring/rules/kubelet-guard.yaml"
	prometheusRulePath = "manifests/monitoring/operator/prometheusrule.yaml"
)

// alertRules are the rules of Prometheus, as it reads them.
type alertRules struct {
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

// readAlerts reads the alerts below the root. Unknown fields are errors.
func readAlerts(root string) (alertRules, error) {
	data, err := os.ReadFile(filepath.Join(root, alertsPath))
	if err != nil {
		return alertRules{}, err
	}
	var r alertRules
	if err := yaml.UnmarshalStrict(data, &r); err != nil {
		return alertRules{}, fmt.Errorf("%s: %w", alertsPath, err)
	}
	return r, nil
}

// prometheusRule returns the alerts as the object of the Prometheus operator.
func prometheusRule(root string) (string, error) {
	spec, err := readAlerts(root)
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
