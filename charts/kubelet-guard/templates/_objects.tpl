{{- /*
kubelet-guard.objects prints the objects of a file, which is what kustomize builds of the overlay
enforce, with what the values change. Arguments: top (the chart's scope) and file.
*/ -}}
{{- define "kubelet-guard.objects" -}}
{{- $values := .top.Values -}}
{{- range $text := splitList "\n---\n" (.top.Files.Get .file) }}
{{- $object := fromYaml $text }}
{{- $kind := $object.kind }}
{{- $isRule := ne "role" (dig "metadata" "labels" "app.kubernetes.io/component" "" $object) }}
{{- if and $isRule (eq $kind "ValidatingAdmissionPolicy") (eq $values.mode "Audit") }}
  {{- $_ := set $object.spec "failurePolicy" "Ignore" }}
{{- else if and $isRule (eq $kind "ValidatingAdmissionPolicyBinding") }}
  {{- if eq $values.mode "Audit" }}
    {{- $_ := set $object.spec "validationActions" (list "Warn" "Audit") }}
  {{- end }}
  {{- if $values.canary }}
    {{- $canaries := dict "namespaceSelector" (dict "matchLabels" (dict "kubelet-guard.io/canary" "true")) }}
    {{- $_ := set $object.spec "matchResources" (merge (default dict $object.spec.matchResources) $canaries) }}
  {{- end }}
{{- else if eq $kind "ValidatingWebhookConfiguration" }}
  {{- if $values.certManager }}
    {{- $_ := set $object.metadata "annotations" (dict "cert-manager.io/inject-ca-from" "kubelet-guard-system/guard-webhook") }}
  {{- end }}
  {{- range $entry := $object.webhooks }}
    {{- if eq $values.mode "Audit" }}
      {{- $_ := set $entry "failurePolicy" "Ignore" }}
    {{- end }}
    {{- /* Nodes and definitions have no namespace. */}}
    {{- if and $values.canary (not (contains "node-deletion" $entry.name)) (not (hasPrefix "definition-deletion." $entry.name)) }}
      {{- $canaries := dict "matchLabels" (dict "kubelet-guard.io/canary" "true") }}
      {{- $_ := set $entry "namespaceSelector" (merge (default dict $entry.namespaceSelector) $canaries) }}
    {{- end }}
  {{- end }}
{{- else if or (eq $kind "CustomResourceDefinition") (eq $object.metadata.name "kubelet-guard-node") }}
  {{- /* What guarded nodes need, and the records: a deleted definition takes its objects along. */}}
  {{- $_ := set $object.metadata "annotations" (merge (dict "helm.sh/resource-policy" "keep") (default dict $object.metadata.annotations)) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end -}}
