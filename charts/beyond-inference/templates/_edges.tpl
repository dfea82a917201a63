{{/* Who talks to whom: the one list of edges that network policies are made from.

`from` and `to` name components of this release; where one is missing, `peers` are others, and none means everybody
(`to` missing: everybody outside; `from` missing: everybody). A link that is being changed has both its edges, old and
new, as long as `serve` says so: policies change at once, pods one after the other. */}}
{{- define "bi.edges" -}}
{{- $models := include "bi.models" . | fromJson -}}
{{- $collector := include "bi.mode" .Values.collector -}}
{{- $jaeger := include "bi.mode" .Values.jaeger -}}
{{- $policies := .Values.networkPolicies -}}
{{- $services := list "preprocess" -}}
{{- $edges := list
  (dict "to" "preprocess" "port" 8001 "peers" $policies.doorFrom)
  (dict "from" "load" "to" "preprocess" "port" 8001)
  (dict "from" "load" "to" "load" "port" 7090)
  (dict "from" "test" "to" "preprocess" "port" 8001)
-}}
{{- $clients := dict "kafka" list "redis" list -}}
{{- $scaled := list -}}
{{- range $name, $model := $models -}}
{{- if $model.remote -}}
{{- $services = append $services $model.component -}}
{{- if has "grpc" $model.ways -}}
{{- $edges = append $edges (dict "from" "preprocess" "to" $model.component "port" 8002) -}}
{{- end -}}
{{- range $broker := $model.brokers -}}
{{- $_ := set $clients $broker (concat (get $clients $broker) (list $model.component "preprocess")) -}}
{{- end -}}
{{- if eq $model.autoscaling.type "keda" -}}
{{- $scaled = concat $scaled (include "bi.brokersOf" (list $model.link) | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.preprocess.frames.enabled -}}
{{- $_ := set $clients "kafka" (concat $clients.kafka (list "preprocess" "load")) -}}
{{- end -}}
{{- if and $clients.kafka .Values.kafka.topics.job -}}
{{- $_ := set $clients "kafka" (append $clients.kafka "topics") -}}
{{- end -}}
{{- range $broker, $port := dict "kafka" 9092 "redis" 6379 -}}
{{- $values := get $.Values $broker -}}
{{- $internal := eq (include "bi.mode" $values) "internal" -}}
{{- $ports := list -}}
{{- if not $internal -}}
{{- $addresses := $values.external.bootstrap | default (list $values.external.address | compact) -}}
{{- $ports = include "bi.portsOf" (list $addresses $values.external.ports) | fromJsonArray -}}
{{- end -}}
{{- range $client := get $clients $broker | uniq -}}
{{- if $internal -}}
{{- $edges = append $edges (dict "from" $client "to" $broker "port" $port) -}}
{{- end -}}
{{- range $ports -}}
{{- $edges = append $edges (dict "from" $client "port" .) -}}
{{- end -}}
{{- end -}}
{{- if and $internal (has $broker $scaled) -}}
{{- $edges = append $edges (dict "to" $broker "port" $port "peers" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" $policies.kedaNamespace))))) -}}
{{- end -}}
{{- end -}}
{{- range $source := concat $services (list "load" "test") -}}
{{- if eq $collector "internal" -}}
{{- $edges = append $edges (dict "from" $source "to" "collector" "port" 4317) -}}
{{- else if eq $collector "external" -}}
{{- range $port := include "bi.portsOf" (list (list $.Values.collector.external.endpoint) $.Values.collector.external.ports) | fromJsonArray -}}
{{- $edges = append $edges (dict "from" $source "port" $port) -}}
{{- end -}}
{{- else if eq $jaeger "internal" -}}
{{- $edges = append $edges (dict "from" $source "to" "jaeger" "port" 4317) -}}
{{- else if eq $jaeger "external" -}}
{{- range $port := include "bi.portsOf" (list (list $.Values.jaeger.external.endpoint) $.Values.jaeger.external.ports) | fromJsonArray -}}
{{- $edges = append $edges (dict "from" $source "port" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $collector "internal" -}}
{{- if eq $jaeger "internal" -}}
{{- $edges = append $edges (dict "from" "collector" "to" "jaeger" "port" 4317) -}}
{{- else if eq $jaeger "external" -}}
{{- range $port := include "bi.portsOf" (list (list .Values.jaeger.external.endpoint) .Values.jaeger.external.ports) | fromJsonArray -}}
{{- $edges = append $edges (dict "from" "collector" "port" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $component, $mode := dict "collector" $collector "jaeger" $jaeger -}}
{{- if eq $mode "internal" -}}
{{- range $port := (get $.Values $component).egressPorts -}}
{{- $edges = append $edges (dict "from" $component "port" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $jaeger "internal" -}}
{{- $edges = append $edges (dict "from" "test" "to" "jaeger" "port" 16686) -}}
{{- if $policies.jaegerFrom -}}
{{- $edges = append $edges (dict "to" "jaeger" "port" 16686 "peers" $policies.jaegerFrom) -}}
{{- end -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $scrapers := $policies.prometheusFrom | default (list (dict "namespaceSelector" dict)) -}}
{{- range $service := $services -}}
{{- $edges = concat $edges (list (dict "to" $service "port" 9464 "peers" $scrapers) (dict "from" "load" "to" $service "port" 9464)) -}}
{{- end -}}
{{- if eq $collector "internal" -}}
{{- $edges = append $edges (dict "to" "collector" "port" 8889 "peers" $scrapers) -}}
{{- end -}}
{{- end -}}
{{- toJson $edges -}}
{{- end -}}

{{/* Ports of what is elsewhere, as JSON, each once: list of addresses (host:port), further ports. */}}
{{- define "bi.portsOf" -}}
{{- $ports := list -}}
{{- range index . 0 -}}
{{- $ports = append $ports (splitList ":" . | last | atoi) -}}
{{- end -}}
{{- range index . 1 -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}
