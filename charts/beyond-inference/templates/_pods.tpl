{{/* What all pods have: Pod Security `restricted`, no token, where they may run. */}}

{{- define "bi.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "bi.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The beginning of a pod's spec. A Service's name must not become an environment variable: enableServiceLinks. */}}
{{- define "bi.podSpec" -}}
serviceAccountName: {{ include "bi.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "bi.podSecurity" . | nindent 2 }}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of pods: list of root, component, its values, further annotations. */}}
{{- define "bi.podMetadata" -}}
{{- $values := index . 2 -}}
labels:
  {{- include "bi.labels" (list (index . 0) (index . 1)) | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (index . 3) ($values.podAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where pods may run: list of root, component, its values. */}}
{{- define "bi.scheduling" -}}
{{- $values := index . 2 -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if hasKey $values "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- if $values.topologySpreadConstraints }}
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "bi.selector" (list (index . 0) (index . 1)) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The probes of a service. They have a port of their own: where requests come in, they would wait for a worker behind
them, and a busy pod would be taken for a dead one. Liveness has a name of its own in gRPC's health protocol: a service
that only cannot reach its broker is not ready, and lives. */}}
{{- define "bi.probes" -}}
{{- $probes := .Values.probes -}}
startupProbe:
  grpc: {port: 8009, service: liveness}
  {{- toYaml $probes.startup | nindent 2 }}
readinessProbe:
  grpc: {port: 8009}
  {{- toYaml $probes.readiness | nindent 2 }}
livenessProbe:
  grpc: {port: 8009, service: liveness}
  {{- toYaml $probes.liveness | nindent 2 }}
{{- end -}}

{{/* An environment variable, whole numbers as such: list of name, value. */}}
{{- define "bi.env" -}}
{{- $value := index . 1 -}}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) -}}
{{- $value = int64 $value -}}
{{- end -}}
- {name: {{ index . 0 }}, value: {{ $value | toString | quote }}}
{{- end -}}

{{/* What both services are told. malloc keeps its pages: fresh ones for every large message cost more than the message. */}}
{{- define "bi.commonEnv" -}}
{{ include "bi.env" (list "BEYOND_LOG_LEVEL" .Values.logLevel) }}
{{ include "bi.env" (list "BEYOND_LOG_FORMAT" "json") }}
{{- if .Values.modelStore.inline }}
{{ include "bi.env" (list "BEYOND_MODELS_FILE" "/etc/beyond-inference/models.toml") }}
{{- else }}
{{ include "bi.env" (list "BEYOND_MODELS_FILE" (.Values.modelStore.file | empty | ternary "" (printf "/models/%s" .Values.modelStore.file))) }}
{{- end }}
{{ include "bi.env" (list "BEYOND_HEALTH" "0.0.0.0:8009") }}
{{- if .Values.metrics.enabled }}
{{ include "bi.env" (list "BEYOND_METRICS" "0.0.0.0:9464") }}
{{- end }}
{{- with include "bi.spans" . }}
{{ include "bi.env" (list "BEYOND_SPANS" .) }}
{{- end }}
{{ include "bi.env" (list "MALLOC_TRIM_THRESHOLD_" "268435456") }}
{{ include "bi.env" (list "MALLOC_TOP_PAD_" "67108864") }}
{{ include "bi.env" (list "MALLOC_MMAP_THRESHOLD_" "268435456") }}
{{- end -}}

{{/* How a model runs: its values. */}}
{{- define "bi.engineEnv" -}}
{{- with .backend }}
{{ include "bi.env" (list "BEYOND_BACKEND" .) }}
{{- end }}
{{ include "bi.env" (list "BEYOND_PRECISION" .precision) }}
{{ include "bi.env" (list "BEYOND_DEVICE" .device) }}
{{ include "bi.env" (list "BEYOND_THREADS" .threads) }}
{{ include "bi.env" (list "OMP_NUM_THREADS" .threads) }}
{{ include "bi.env" (list "BEYOND_INSTANCES" (include "bi.instances" .)) }}
{{ include "bi.env" (list "BEYOND_MAX_BATCH" .maxBatch) }}
{{ include "bi.env" (list "BEYOND_MAX_DELAY_MS" .maxDelayMs) }}
{{ include "bi.env" (list "BEYOND_QUEUE_CAPACITY" .queueCapacity) }}
{{- end -}}

{{/* Resources of a container with a model: list of its values, its resources as YAML. */}}
{{- define "bi.resources" -}}
{{- $gpu := (index . 0).gpu -}}
{{- $resources := index . 1 | fromYaml -}}
{{- if int $gpu.count -}}
{{- $_ := set $resources "limits" (merge (dict $gpu.resourceName (int $gpu.count)) ($resources.limits | default dict)) -}}
{{- $_ := set $resources "requests" (merge (dict $gpu.resourceName (int $gpu.count)) ($resources.requests | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Init containers that bring and check models: list of root, the image of the service that needs them. */}}
{{- define "bi.modelInit" -}}
{{- $root := index . 0 -}}
{{- $store := $root.Values.modelStore -}}
{{- if eq $store.type "image" }}
- name: copy-models
  image: {{ include "bi.image" (list $root $store.image "latest") }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy }}
  command: [sh, -c, 'cp -R "$1"/. /models/', copy-models, {{ $store.image.path | quote }}]
  securityContext:
    {{- include "bi.containerSecurity" $root | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {cpu: "1", memory: 256Mi}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end }}
{{- if $store.sha256 }}
- name: check-models
  image: {{ index . 1 }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy }}
  workingDir: /models
  command: [sha256sum, --check, --strict, /etc/beyond-inference/SHA256SUMS]
  securityContext:
    {{- include "bi.containerSecurity" $root | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {cpu: "1", memory: 256Mi}
  volumeMounts:
    - {name: settings, mountPath: /etc/beyond-inference, readOnly: true}
    {{- if ne $store.type "baked" }}
    - {name: models, mountPath: /models, readOnly: true{{ with $store.pvc.subPath }}, subPath: {{ . | quote }}{{ end }}}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Mounts of a service: list of root, its values. */}}
{{- define "bi.mounts" -}}
{{- $root := index . 0 -}}
{{- $store := $root.Values.modelStore -}}
- {name: tmp, mountPath: /tmp}
{{- if or $store.inline $store.sha256 }}
- {name: settings, mountPath: /etc/beyond-inference, readOnly: true}
{{- end }}
{{- if eq $store.type "pvc" }}
- {name: models, mountPath: /models, readOnly: true{{ with $store.pvc.subPath }}, subPath: {{ . | quote }}{{ end }}}
{{- else if eq $store.type "image" }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- with (index . 1).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "bi.volumes" -}}
{{- $root := index . 0 -}}
{{- $store := $root.Values.modelStore -}}
- {name: tmp, emptyDir: {}}
{{- if or $store.inline $store.sha256 }}
- name: settings
  configMap: {name: {{ include "bi.component" (list $root "models") }}}
{{- end }}
{{- if eq $store.type "pvc" }}
- name: models
  persistentVolumeClaim: {claimName: {{ $store.pvc.claimName }}, readOnly: true}
{{- else if eq $store.type "image" }}
- {name: models, emptyDir: {}}
{{- end }}
{{- with (index . 1).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What makes pods anew when the models file or the checksums change. */}}
{{- define "bi.modelChecksum" -}}
{{- toJson (list .Values.modelStore.inline .Values.modelStore.sha256) | sha256sum -}}
{{- end -}}

{{/* What a pod has to meet the brokers of its links with: list of root, brokers. Secrets stay where they are: no value of
the chart has one. */}}
{{- define "bi.linkEnv" -}}
{{- $root := index . 0 -}}
{{- range $broker := index . 1 }}
{{ include (printf "bi.%sEnv" $broker) $root }}
{{- end -}}
{{- end -}}

{{- define "bi.linkMounts" -}}
{{- $root := index . 0 -}}
{{- range $broker := index . 1 }}
{{- if include (printf "bi.%sSecured" $broker) $root }}
{{- with (get $root.Values $broker).external.caSecret }}
- {name: {{ $broker }}-ca, mountPath: /etc/{{ $broker }}-ca, readOnly: true}
{{- end }}
{{- with (get $root.Values $broker).external.clientSecret }}
- {name: {{ $broker }}-client, mountPath: /etc/{{ $broker }}-client, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Readable by the pods' group only (0440). */}}
{{- define "bi.linkVolumes" -}}
{{- $root := index . 0 -}}
{{- range $broker := index . 1 }}
{{- if include (printf "bi.%sSecured" $broker) $root }}
{{- $external := (get $root.Values $broker).external }}
{{- with $external.caSecret }}
- name: {{ $broker }}-ca
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: {{ $external.caKey | quote }}, path: ca.crt}]}
{{- end }}
{{- with $external.clientSecret }}
- name: {{ $broker }}-client
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Whether the links' brokers want more than an address: "yes", or nothing. */}}
{{- define "bi.kafkaSecured" -}}
{{- if and (eq (include "bi.mode" .Values.kafka) "external") (ne .Values.kafka.external.security "PLAINTEXT") -}}
yes
{{- end -}}
{{- end -}}

{{- define "bi.kafkaEnv" -}}
{{- if include "bi.kafkaSecured" . -}}
{{- $kafka := .Values.kafka.external -}}
{{ include "bi.env" (list "BEYOND_KAFKA_PROTOCOL" $kafka.security) }}
{{- if hasPrefix "SASL" $kafka.security }}
{{ include "bi.env" (list "BEYOND_KAFKA_MECHANISM" $kafka.mechanism) }}
- name: BEYOND_KAFKA_USER
  valueFrom: {secretKeyRef: {name: {{ $kafka.existingSecret | quote }}, key: {{ $kafka.userKey | quote }}}}
- name: BEYOND_KAFKA_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $kafka.existingSecret | quote }}, key: {{ $kafka.passwordKey | quote }}}}
{{- end }}
{{- if $kafka.caSecret }}
{{ include "bi.env" (list "BEYOND_KAFKA_CA_FILE" "/etc/kafka-ca/ca.crt") }}
{{- end }}
{{- if $kafka.clientSecret }}
{{ include "bi.env" (list "BEYOND_KAFKA_CERTIFICATE_FILE" "/etc/kafka-client/tls.crt") }}
{{ include "bi.env" (list "BEYOND_KAFKA_KEY_FILE" "/etc/kafka-client/tls.key") }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Whether Redis wants more than an address: "yes", or nothing. */}}
{{- define "bi.redisSecured" -}}
{{- $external := .Values.redis.external -}}
{{- if and (eq (include "bi.mode" .Values.redis) "external") (or $external.tls $external.existingSecret) -}}
yes
{{- end -}}
{{- end -}}

{{- define "bi.redisEnv" -}}
{{- if include "bi.redisSecured" . -}}
{{- $redis := .Values.redis.external -}}
{{ include "bi.env" (list "BEYOND_REDIS_TLS" ($redis.tls | ternary "on" "off")) }}
{{- if $redis.existingSecret }}
{{- with $redis.userKey }}
- name: BEYOND_REDIS_USER
  valueFrom: {secretKeyRef: {name: {{ $redis.existingSecret | quote }}, key: {{ . | quote }}}}
{{- end }}
- name: BEYOND_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $redis.existingSecret | quote }}, key: {{ $redis.passwordKey | quote }}}}
{{- end }}
{{- if $redis.caSecret }}
{{ include "bi.env" (list "BEYOND_REDIS_CA_FILE" "/etc/redis-ca/ca.crt") }}
{{- end }}
{{- if $redis.clientSecret }}
{{ include "bi.env" (list "BEYOND_REDIS_CERTIFICATE_FILE" "/etc/redis-client/tls.crt") }}
{{ include "bi.env" (list "BEYOND_REDIS_KEY_FILE" "/etc/redis-client/tls.key") }}
{{- end }}
{{- end -}}
{{- end -}}
