{{/* The models that are served, and their links. */}}

{{/* As JSON, by name: what `inference` says, overridden by what the model says. */}}
{{- define "bi.models" -}}
{{- $models := dict -}}
{{- range $name, $own := .Values.models -}}
{{- $model := mustMergeOverwrite (dict "enabled" true "model" $name "serve" list "cut" "f32") (deepCopy $.Values.inference) (deepCopy ($own | default dict)) -}}
{{- if $model.enabled -}}
{{- $_ := set $model "component" (printf "inference-%s" $name) -}}
{{- /* All ways that work may come to it; `remote`: it has pods of its own. */}}
{{- $_ := set $model "ways" (concat (list $model.link) $model.serve | uniq) -}}
{{- $_ := set $model "remote" (or (ne $model.link "fused") (gt (len $model.serve) 0)) -}}
{{- $_ := set $model "brokers" (include "bi.brokersOf" $model.ways | fromJsonArray) -}}
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

{{/* The brokers that links of these transports go through, `kafka` and `redis`, as JSON: list of transports. */}}
{{- define "bi.brokersOf" -}}
{{- $brokers := list -}}
{{- range . -}}
{{- if hasPrefix "kafka" . -}}
{{- $brokers = append $brokers "kafka" -}}
{{- else if eq . "redis" -}}
{{- $brokers = append $brokers . -}}
{{- end -}}
{{- end -}}
{{- $brokers | uniq | toJson -}}
{{- end -}}

{{/* "yes" where a broker is to be installed, an internal one that some model gets work through: list of root, `kafka` or
`redis`. */}}
{{- define "bi.broker" -}}
{{- $root := index . 0 -}}
{{- $broker := index . 1 -}}
{{- if eq (include "bi.mode" (get $root.Values $broker)) "internal" -}}
{{- $used := false -}}
{{- range include "bi.models" $root | fromJson -}}
{{- $used = or $used (has $broker .brokers) -}}
{{- end -}}
{{- $used = or $used (and (eq $broker "kafka") $root.Values.preprocess.frames.enabled) -}}
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

{{/* host:port of Redis. */}}
{{- define "bi.redis" -}}
{{- if eq (include "bi.mode" .Values.redis) "external" -}}
{{- .Values.redis.external.address -}}
{{- else -}}
{{- include "bi.address" (list . "redis" 6379) -}}
{{- end -}}
{{- end -}}

{{/* Of a link through Redis: list of root, model. */}}
{{- define "bi.stream" -}}
{{- printf "%s%s" (index . 0).Values.redis.streamPrefix (index . 1).model -}}
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
{{- else if eq $transport "redis" -}}
{{- $redis := $root.Values.redis -}}
{{- printf "redis://%s/%s?prefetch=%d&session_ms=%d&backlog=%d&retention_s=%d" (include "bi.redis" $root) (include "bi.stream" .) (int $redis.prefetch) (int $redis.sessionMs) (int $redis.backlog) (int $redis.retentionS) -}}
{{- else -}}
{{- $kafka := $root.Values.kafka -}}
{{- $scheme := eq $transport "kafka-python" | ternary "kafka+python" "kafka" -}}
{{- printf "%s://%s/%s?partitions=%d&replies=%d&acks=%v&linger_ms=%d&prefetch=%d&session_ms=%d" $scheme (include "bi.bootstrap" $root) (include "bi.topic" .) (int $kafka.partitions) (int $kafka.replyPartitions) $kafka.acks (int $kafka.lingerMs) (int $kafka.prefetch) (int $kafka.sessionMs) -}}
{{- end -}}
{{- end -}}

{{/* From where doors take frames; empty: from nowhere. */}}
{{- define "bi.frames" -}}
{{- $frames := .Values.preprocess.frames -}}
{{- if $frames.enabled -}}
{{- $kafka := .Values.kafka -}}
{{- $scheme := eq $frames.client "kafka-python" | ternary "kafka+python" "kafka" -}}
{{- printf "%s://%s/%s?results=%s&partitions=%d&replies=%d&acks=%v&linger_ms=%d&prefetch=%d&session_ms=%d" $scheme (include "bi.bootstrap" .) $frames.images $frames.results (int $kafka.partitions) (int $kafka.replyPartitions) $kafka.acks (int $kafka.lingerMs) (int $frames.prefetch) (int $kafka.sessionMs) -}}
{{- end -}}
{{- end -}}

{{/* URLs that a model's inference service takes work from, blank-separated: list of root, model, brokers. */}}
{{- define "bi.consumed" -}}
{{- $root := index . 0 -}}
{{- $model := index . 1 -}}
{{- $brokers := index . 2 -}}
{{- $urls := list -}}
{{- range $transport := $model.ways -}}
{{- range include "bi.brokersOf" (list $transport) | fromJsonArray -}}
{{- if has . $brokers -}}
{{- $urls = append $urls (include "bi.url" (list $root $model $transport)) -}}
{{- end -}}
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
