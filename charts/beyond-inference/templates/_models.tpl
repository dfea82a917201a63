{{/* The models that are served, and their links. */}}

{{/* As JSON, by name: what `inference` says, overridden by what the model says. */}}
{{- define "bi.models" -}}
{{- $models := dict -}}
{{- range $name, $own := .Values.models -}}
{{- $model := mustMergeOverwrite (dict "enabled" true "model" $name "serve" list) (deepCopy $.Values.inference) (deepCopy ($own | default dict)) -}}
{{- if $model.enabled -}}
{{- $_ := set $model "component" (printf "inference-%s" $name) -}}
{{- /* All ways that work may come to it; `remote`: it has pods of its own. */}}
{{- $_ := set $model "ways" (concat (list $model.link) $model.serve | uniq) -}}
{{- $_ := set $model "remote" (or (ne $model.link "fused") (gt (len $model.serve) 0)) -}}
{{- if not $model.model -}}
{{- $_ := set $model "model" $name -}}
{{- end -}}
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/* The model in the door's process, as JSON; {} where none is. */}}
{{- define "bi.fused" -}}
{{- $fused := dict -}}
{{- range $name, $model := include "bi.models" . | fromJson -}}
{{- if eq $model.link "fused" -}}
{{- $fused = $model -}}
{{- end -}}
{{- end -}}
{{- toJson $fused -}}
{{- end -}}

{{/* YAML reads `off` as false. */}}
{{- define "bi.mode" -}}
{{- if kindIs "bool" .mode -}}
off
{{- else -}}
{{- .mode -}}
{{- end -}}
{{- end -}}

{{/* "yes" where a broker is to be installed: an internal one that some model gets work through. */}}
{{- define "bi.broker" -}}
{{- if eq (include "bi.mode" .Values.kafka) "internal" -}}
{{- $used := false -}}
{{- range include "bi.models" . | fromJson -}}
{{- $used = or $used (include "bi.consumed" (list $ .) | empty | not) -}}
{{- end -}}
{{- if $used -}}
yes
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bi.bootstrap" -}}
{{- if eq (include "bi.mode" .Values.kafka) "external" -}}
{{- join "," .Values.kafka.external.bootstrap -}}
{{- else -}}
{{- include "bi.address" (list . "kafka" 9092) -}}
{{- end -}}
{{- end -}}

{{/* Of a link through Kafka: list of root, model, transport. The two client libraries don't share a group. */}}
{{- define "bi.topic" -}}
{{- $root := index . 0 -}}
{{- $model := index . 1 -}}
{{- printf "%s%s%s" $root.Values.kafka.topics.prefix $model.model (eq (index . 2) "kafka-python" | ternary ".python" "") -}}
{{- end -}}

{{/* A link's URL: list of root, model, transport. */}}
{{- define "bi.url" -}}
{{- $root := index . 0 -}}
{{- $model := index . 1 -}}
{{- $transport := index . 2 -}}
{{- if eq $transport "fused" -}}
fused:
{{- else if eq $transport "grpc" -}}
{{- printf "grpc://%s" (include "bi.address" (list $root $model.component 8002)) -}}
{{- else -}}
{{- $kafka := $root.Values.kafka -}}
{{- $scheme := eq $transport "kafka-python" | ternary "kafka+python" "kafka" -}}
{{- printf "%s://%s/%s?partitions=%d&replies=%d&acks=%v&linger_ms=%d&prefetch=%d&session_ms=%d" $scheme (include "bi.bootstrap" $root) (include "bi.topic" .) (int $kafka.partitions) (int $kafka.replyPartitions) $kafka.acks (int $kafka.lingerMs) (int $kafka.prefetch) (int $kafka.sessionMs) -}}
{{- end -}}
{{- end -}}

{{/* URLs that a model's inference service takes work from, blank-separated: list of root, model. */}}
{{- define "bi.consumed" -}}
{{- $root := index . 0 -}}
{{- $model := index . 1 -}}
{{- $urls := list -}}
{{- range $transport := $model.ways -}}
{{- if hasPrefix "kafka" $transport -}}
{{- $urls = append $urls (include "bi.url" (list $root $model $transport)) -}}
{{- end -}}
{{- end -}}
{{- join " " $urls -}}
{{- end -}}

{{/* Where spans go; empty: nowhere. */}}
{{- define "bi.spans" -}}
{{- $collector := include "bi.mode" .Values.collector -}}
{{- $jaeger := include "bi.mode" .Values.jaeger -}}
{{- if eq $collector "internal" -}}
{{- printf "otlp://%s" (include "bi.address" (list . "collector" 4317)) -}}
{{- else if eq $collector "external" -}}
{{- printf "otlp://%s" .Values.collector.external.endpoint -}}
{{- else if ne $jaeger "off" -}}
{{- printf "otlp://%s" (include "bi.jaeger" .) -}}
{{- end -}}
{{- end -}}

{{/* host:port where Jaeger takes OTLP. */}}
{{- define "bi.jaeger" -}}
{{- if eq (include "bi.mode" .Values.jaeger) "internal" -}}
{{- include "bi.address" (list . "jaeger" 4317) -}}
{{- else -}}
{{- .Values.jaeger.external.endpoint -}}
{{- end -}}
{{- end -}}
