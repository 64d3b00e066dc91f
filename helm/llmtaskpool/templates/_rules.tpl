{{/*
All that the operator may do, and nothing else. Each line has its reason; the same list stands in
tests/chart/test_rbac.py, so that a new right is asked for twice.
*/}}

{{/* In the namespaces that it serves. */}}
{{- define "llmtaskpool.rules" -}}
- apiGroups: [llmtaskpool.io] # pools are read; spec is never written
  resources: [llmtaskpools]
  verbs: [list, watch]
- apiGroups: [llmtaskpool.io]
  resources: [llmtaskpools/status]
  verbs: [patch]
- apiGroups: [llmtaskpool.io] # the number that /scale needs, where a manifest in mode External has none
  resources: [llmtaskpools/scale]
  verbs: [patch]
- apiGroups: [llmtaskpool.io] # children name their pool as owner, with blockOwnerDeletion
  resources: [llmtaskpools/finalizers]
  verbs: [update]
- apiGroups: [apps] # the workers
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""] # watched; patched with their deletion cost
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""] # watched by their metadata: what somebody deletes comes back at once
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""] # spec.cache.claimTemplate
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""] # control tokens are written and never read
  resources: [secrets]
  verbs: [create, patch]
- apiGroups: [events.k8s.io] # listed: that a volume can't be mounted stands nowhere else
  resources: [events]
  verbs: [create, list]
{{- end -}}

{{/* In its own namespace: the lease, and the key that control tokens are derived from. */}}
{{- define "llmtaskpool.ownRules" -}}
- apiGroups: [coordination.k8s.io] # `create` can't be narrowed to a name
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "llmtaskpool.operator" . }}]
  verbs: [get, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [llmtaskpool-operator-key]
  verbs: [get]
{{- end -}}
