{{/* Names and labels. */}}

{{- define "bi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "bi.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "bi.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "bi.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of a component: list of root and the component's name. */}}
{{- define "bi.component" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" (include "bi.fullname" $root) (index . 1) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What tells a component's pods from others: list of root and the component's name. */}}
{{- define "bi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "bi.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "bi.labels" -}}
{{- $root := index . 0 -}}
{{ include "bi.selector" . }}
app.kubernetes.io/part-of: {{ $root.Chart.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Name, namespace and labels of an object: list of root and the component's name. */}}
{{- define "bi.metadata" -}}
name: {{ include "bi.component" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "bi.labels" . | nindent 2 }}
{{- end -}}

{{- define "bi.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "bi.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Inside the cluster: list of root, component, port. */}}
{{- define "bi.address" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.svc.%s:%d" (include "bi.component" (list $root (index . 1))) $root.Release.Namespace $root.Values.clusterDomain (int (index . 2)) -}}
{{- end -}}

{{/* An image: list of root, its values, its tag where the values have none. */}}
{{- define "bi.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := $image.repository -}}
{{- with $root.Values.global.imageRegistry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default (index . 2) $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Of an inference image: list of root, the model's values. */}}
{{- define "bi.inferenceImage" -}}
{{- $root := index . 0 -}}
{{- $image := (index . 1).image -}}
{{- $tag := $root.Chart.AppVersion -}}
{{- with $image.variant -}}
{{- $tag = printf "%s-%s" $tag . -}}
{{- end -}}
{{- include "bi.image" (list $root $image $tag) -}}
{{- end -}}

{{/* Of a load Job, which cannot be changed: another plan, another `run`, or other pods are another Job. */}}
{{- define "bi.loadName" -}}
{{- printf "load-%v-%s" .Values.load.run (printf "%s%s" .Values.load.plan (include "bi.loadPod" (list . "")) | sha256sum | trunc 6) -}}
{{- end -}}
