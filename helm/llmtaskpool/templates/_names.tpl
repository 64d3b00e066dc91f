{{- define "llmtaskpool.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* llmtaskpool for a release of that name, else release-llmtaskpool. */}}
{{- define "llmtaskpool.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "llmtaskpool.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "llmtaskpool.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmtaskpool.operator" -}}
{{ include "llmtaskpool.fullname" . }}-operator
{{- end -}}

{{- define "llmtaskpool.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "llmtaskpool.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: set serviceAccount.name to one that exists" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "llmtaskpool.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llmtaskpool.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "llmtaskpool.labels" -}}
{{ include "llmtaskpool.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: llmtaskpool
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* repository@digest, or repository:tag. */}}
{{- define "llmtaskpool.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}

{{/* Pod Security "restricted", and a root file system that can't be written. */}}
{{- define "llmtaskpool.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int }}
runAsGroup: {{ . | int }}
fsGroup: {{ . | int }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "llmtaskpool.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
Whose the CRD is, when it is there and isn't this release's; else empty, as without a server.
Helm would refuse the whole release for it.
*/}}
{{- define "llmtaskpool.foreignCrd" -}}
{{- if .Values.crds.install -}}
{{- with lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "llmtaskpools.llmtaskpool.io" -}}
{{- $marks := .metadata.annotations | default dict -}}
{{- $name := index $marks "meta.helm.sh/release-name" | default "" -}}
{{- $namespace := index $marks "meta.helm.sh/release-namespace" | default "" -}}
{{- if or (ne $name $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- if $name }}the release {{ $name }} in {{ $namespace }}{{ else }}somebody who applied it without Helm{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Says which of `namespaces` are not there: what is made in them would fail one by one. */}}
{{- define "llmtaskpool.checkNamespaces" -}}
{{- if and .Values.namespaces (lookup "v1" "Namespace" "" "kube-system") -}}
{{- $missing := list -}}
{{- range .Values.namespaces -}}
{{- if not (lookup "v1" "Namespace" "" .) -}}{{- $missing = append $missing . -}}{{- end -}}
{{- end -}}
{{- with $missing -}}
{{- fail (printf "namespaces: %s: not there: make them first (kubectl create namespace %s), or take them out of `namespaces`" (join ", " .) (first .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What all workers get, as JSON without what is empty; nothing when all of it is. */}}
{{- define "llmtaskpool.workers" -}}
{{- $given := dict -}}
{{- range $name, $value := .Values.workers -}}
{{- if $value }}{{- $_ := set $given $name $value -}}{{- end -}}
{{- end -}}
{{- if $given }}{{- toJson $given -}}{{- end -}}
{{- end -}}
