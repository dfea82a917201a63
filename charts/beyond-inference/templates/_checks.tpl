{{/* What the schema cannot say: values that contradict each other are refused, with the remedy. */}}

{{- define "bi.refuse" -}}
{{- fail (printf "\n\nbeyond-inference: %s\n" .) -}}
{{- end -}}

{{- define "bi.checks" -}}
{{- $fullname := include "bi.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $fullname) -}}
{{- include "bi.refuse" (printf "objects would be named %s-..., and Kubernetes wants names of Services to begin with a letter and to have only a-z, 0-9 and -; give fullnameOverride, or another name to the release" $fullname) -}}
{{- end -}}
{{- include "bi.checkLabels" (list "commonLabels" .Values.commonLabels) -}}
{{- range $name := list "preprocess" "inference" "kafka" "redis" "collector" "jaeger" -}}
{{- include "bi.checkLabels" (list (printf "%s.podLabels" $name) (get $.Values $name).podLabels) -}}
{{- end -}}
{{- $kafka := include "bi.mode" .Values.kafka -}}
{{- $redis := include "bi.mode" .Values.redis -}}
{{- $models := include "bi.models" . | fromJson -}}
{{- if not $models -}}
{{- include "bi.refuse" "no model is enabled; set models.<name>.enabled: true" -}}
{{- end -}}
{{- $tasks := dict -}}
{{- range $name, $model := $models -}}
{{- $at := printf "models.%s" $name -}}
{{- include "bi.checkLabels" (list (printf "%s.podLabels" $at) $model.podLabels) -}}
{{- if hasKey $tasks $model.task -}}
{{- include "bi.refuse" (printf "models '%s' and '%s' both answer task '%s', and a door asks one model per task; set enabled: false in one of them, or install a second release" (get $tasks $model.task) $name $model.task) -}}
{{- end -}}
{{- $_ := set $tasks $model.task $name -}}
{{- $scaled := $model.autoscaling.type | ne "none" -}}
{{- $most := int ($scaled | ternary $model.autoscaling.maxReplicas $model.replicas) -}}
{{- range $broker := $model.brokers -}}
{{- if eq (include "bi.mode" (get $.Values $broker)) "off" -}}
{{- include "bi.refuse" (printf "%s goes through %s, and %s.mode is off; set %s.mode to internal or external, or %s.link to grpc or fused" $at (title $broker) $broker $broker $at) -}}
{{- end -}}
{{- end -}}
{{- if and (has "kafka" $model.brokers) (gt $most (int $.Values.kafka.partitions)) -}}
{{- include "bi.refuse" (printf "%s may have %d pods, and kafka.partitions is %d: pods beyond the partitions get no work; raise kafka.partitions to %d" $at $most (int $.Values.kafka.partitions) $most) -}}
{{- end -}}
{{- if and (eq $model.autoscaling.type "keda") (not (include "bi.brokersOf" (list $model.link) | fromJsonArray)) -}}
{{- include "bi.refuse" (printf "%s scales by the lag of a topic or stream (keda), and its link is %s; use link: kafka or redis, or autoscaling.type: hpa" $at $model.link) -}}
{{- end -}}
{{- if and (eq $model.autoscaling.type "keda") (eq $model.link "redis") (eq $redis "external") (or $.Values.redis.external.caSecret $.Values.redis.external.clientSecret) -}}
{{- include "bi.refuse" (printf "%s scales by the lag of a stream (keda), and KEDA is not given redis.external.caSecret and clientSecret; set %s.autoscaling.type: hpa" $at $at) -}}
{{- end -}}
{{- include "bi.checkCut" (list $models $name) -}}
{{- if and $scaled (not $model.remote) -}}
{{- include "bi.refuse" (printf "%s runs in the door's process, which preprocess.autoscaling scales; set %s.autoscaling.type: none" $at $at) -}}
{{- end -}}
{{- include "bi.checkScaling" (list $at $model) -}}
{{- include "bi.checkDrain" (list $ $at $model) -}}
{{- $gpu := int $model.gpu.count -}}
{{- if and (ne $model.device "cpu") (not $gpu) (not $model.runtimeClassName) -}}
{{- include "bi.refuse" (printf "%s.device is %s, and its pods get no GPU; set gpu.count: 1 (and gpu.resourceName), or device: cpu" $at $model.device) -}}
{{- end -}}
{{- if and (eq $model.device "cpu") $gpu -}}
{{- include "bi.refuse" (printf "%s gets %d GPU, and runs on the CPU; set device: cuda, or gpu.count: 0" $at $gpu) -}}
{{- end -}}
{{- $given := or $model.image.tag $model.image.digest -}}
{{- if and (eq $model.backend "torch") (eq $model.image.variant "") (not $given) -}}
{{- include "bi.refuse" (printf "%s.backend is torch, which is in the variant torch of the image only; set image.variant: torch" $at) -}}
{{- end -}}
{{- if and (eq $model.backend "tensorrt") (ne $model.image.variant "tensorrt") (not $given) -}}
{{- include "bi.refuse" (printf "%s.backend is tensorrt, which is in the variant tensorrt of the image only; set image.variant: tensorrt" $at) -}}
{{- end -}}
{{- if and (eq $model.backend "tensorrt") (eq $model.device "cpu") -}}
{{- include "bi.refuse" (printf "%s.backend is tensorrt, which runs on NVIDIA's GPUs only; set device: cuda and gpu.count: 1" $at) -}}
{{- end -}}
{{- end -}}
{{- with .Values.preprocess -}}
{{- include "bi.checkScaling" (list "preprocess" .) -}}
{{- include "bi.checkDrain" (list $ "preprocess" .) -}}
{{- if le (int .doorThreads) (int .admissionLimit) -}}
{{- include "bi.refuse" (printf "preprocess.doorThreads is %d, and admissionLimit %d: with no thread left, refusals wait behind requests; set doorThreads to %d" (int .doorThreads) (int .admissionLimit) (add (int .admissionLimit) 32)) -}}
{{- end -}}
{{- end -}}
{{- include "bi.checkPreprocessor" . -}}
{{- with .Values.preprocess.frames -}}
{{- if .enabled -}}
{{- if eq $kafka "off" -}}
{{- include "bi.refuse" "preprocess.frames are taken from Kafka, and kafka.mode is off; set kafka.mode to internal or external, or preprocess.frames.enabled: false" -}}
{{- end -}}
{{- if has .results (list .images (printf "%s.replies" .images) (printf "%s.dead" .images)) -}}
{{- include "bi.refuse" (printf "preprocess.frames.results is '%s', a topic of the frames themselves; name another" .results) -}}
{{- end -}}
{{- $most := int (eq $.Values.preprocess.autoscaling.type "none" | ternary $.Values.preprocess.replicas $.Values.preprocess.autoscaling.maxReplicas) -}}
{{- if gt $most (int $.Values.kafka.partitions) -}}
{{- include "bi.refuse" (printf "there may be %d pods of preprocess, and kafka.partitions is %d: pods beyond the partitions get no frames; raise kafka.partitions to %d" $most (int $.Values.kafka.partitions) $most) -}}
{{- end -}}
{{- $tasks := list -}}
{{- range $name, $model := $models -}}
{{- $tasks = append $tasks $model.task -}}
{{- end -}}
{{- if and .task (not (has .task $tasks)) -}}
{{- include "bi.refuse" (printf "preprocess.frames.task is %s, and no model is of that task; there is %s" .task (join ", " (sortAlpha $tasks))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.load.entrance "frames") (not .Values.preprocess.frames.enabled) -}}
{{- include "bi.refuse" "load.entrance is frames, and doors take none; set preprocess.frames.enabled: true, or load.entrance: grpc" -}}
{{- end -}}
{{- if and (eq $kafka "external") (not .Values.kafka.external.bootstrap) -}}
{{- include "bi.refuse" "kafka.mode is external; name its brokers: kafka.external.bootstrap: [host:9092]" -}}
{{- end -}}
{{- with .Values.kafka.external -}}
{{- if and (eq $kafka "external") (hasPrefix "SASL" .security) (not .existingSecret) -}}
{{- include "bi.refuse" (printf "kafka.external.security is %s; name the secret with the user and the password: kafka.external.existingSecret" .security) -}}
{{- end -}}
{{- if and (eq $kafka "external") (not (hasPrefix "SASL" .security)) .existingSecret -}}
{{- include "bi.refuse" (printf "kafka.external.existingSecret is for SASL, and kafka.external.security is %s; set it to SASL_SSL" .security) -}}
{{- end -}}
{{- if and (eq $kafka "external") (not (hasSuffix "SSL" .security)) (or .caSecret .clientSecret) -}}
{{- include "bi.refuse" (printf "kafka.external.caSecret and clientSecret are for TLS, and kafka.external.security is %s; set it to SSL or SASL_SSL" .security) -}}
{{- end -}}
{{- end -}}
{{- with .Values.redis -}}
{{- if and (eq $redis "external") (not .external.address) -}}
{{- include "bi.refuse" "redis.mode is external; say where it is: redis.external.address: host:6379" -}}
{{- end -}}
{{- if and (eq $redis "external") (not .external.tls) (or .external.caSecret .external.clientSecret) -}}
{{- include "bi.refuse" "redis.external.caSecret and clientSecret are for TLS, and redis.external.tls is false; set it to true" -}}
{{- end -}}
{{- if and (eq $redis "external") .external.userKey (not .external.existingSecret) -}}
{{- include "bi.refuse" (printf "redis.external.userKey is %s, and no secret has it; name the one with the user and the password: redis.external.existingSecret" .external.userKey) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "collector" "jaeger" -}}
{{- $part := get $.Values $name -}}
{{- if and (eq (include "bi.mode" $part) "external") (not $part.external.endpoint) -}}
{{- include "bi.refuse" (printf "%s.mode is external; say where it takes OTLP over gRPC: %s.external.endpoint: host:4317" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.collector.tailSampling.enabled (gt (int .Values.collector.replicas) 1) -}}
{{- include "bi.refuse" "collector.tailSampling needs all spans of a trace in one pod; set collector.replicas: 1" -}}
{{- end -}}
{{- with .Values.modelStore -}}
{{- if and (eq .type "pvc") (not .pvc.claimName) -}}
{{- include "bi.refuse" "modelStore.type is pvc; name the claim: modelStore.pvc.claimName" -}}
{{- end -}}
{{- if and (eq .type "image") (not .image.repository) -}}
{{- include "bi.refuse" "modelStore.type is image; name it: modelStore.image.repository" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.load.enabled (not .Values.load.plan) -}}
{{- include "bi.refuse" "load.enabled needs a plan; --set-file load.plan=loadgen/plans/example.toml" -}}
{{- end -}}
{{- if and .Values.load.enabled (gt (int .Values.load.pods) 1) -}}
{{- if semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version -}}
{{- include "bi.refuse" (printf "load.pods is %d: pods that end each by itself need Kubernetes 1.29, and this is %s; set load.pods: 1" (int .Values.load.pods) .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- if .Values.load.enabled -}}
{{- /* A name has 63 characters in the DNS; of several pods each has one there, the last three for its number. */}}
{{- $job := printf "%s-%s" $fullname (include "bi.loadName" .) -}}
{{- if and (gt (int .Values.load.pods) 1) (gt (len $job) 60) -}}
{{- include "bi.refuse" (printf "the Job of load.pods would be named %s, which leaves no room for the number of a pod; give a shorter load.run, or fullnameOverride" $job) -}}
{{- else if gt (len $job) 63 -}}
{{- include "bi.refuse" (printf "the load's Job would be named %s, and a name has 63 characters at most; give a shorter load.run, or fullnameOverride" $job) -}}
{{- end -}}
{{- end -}}
{{- if include "bi.broker" (list . "redis") -}}
{{- with .Values.redis -}}
{{- $maxmemoryMi := include "bi.maxmemoryMi" . | int64 -}}
{{- if lt $maxmemoryMi 64 -}}
{{- include "bi.refuse" (printf "redis.resources.limits.memory leaves Redis %d MiB to fill, half of it; set it to 128Mi or more" $maxmemoryMi) -}}
{{- end -}}
{{- /* The file holds all, and as much again until it is written anew, which takes the room of all once more. */}}
{{- $needed := add (mul 3 $maxmemoryMi) 256 -}}
{{- if gt $needed (include "bi.mebibytes" .persistence.size | int64) -}}
{{- include "bi.refuse" (printf "Redis's file may take %d MiB (3 x half of redis.resources.limits.memory + 256), and redis.persistence.size is %v; raise it, or lower the limit" $needed .persistence.size) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $kafka "internal" -}}
{{- /* Per link its topic, its replies, its dead letters; a segment that waits for its deletion, and the one in use. */}}
{{- $links := 0 -}}
{{- range $name, $model := $models -}}
{{- $links = add $links (len (compact (splitList " " (include "bi.consumed" (list $ $model (list "kafka")))))) -}}
{{- end -}}
{{- $frames := .Values.preprocess.frames.enabled | ternary 1 0 -}}
{{- with .Values.kafka -}}
{{- /* Frames have results, too, as many partitions of them. */}}
{{- $topics := add (mul $links (add .partitions .replyPartitions 1)) (mul $frames (add .partitions .partitions .replyPartitions 1)) -}}
{{- $needed := mul $topics (add .retentionMi 128) -}}
{{- if gt $needed (include "bi.mebibytes" .persistence.size | int64) -}}
{{- include "bi.refuse" (printf "the broker's topics may keep %d MiB (links x partitions x (retentionMi + 128)), and kafka.persistence.size is %s; raise it, or lower kafka.retentionMi or kafka.partitions" $needed .persistence.size) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a door on a GPU would miss when it starts: the GPU, torch, or DALI. */}}
{{- define "bi.checkPreprocessor" -}}
{{- $fused := include "bi.fused" . | fromJson -}}
{{- with .Values.preprocess -}}
{{- if eq .preprocessor "opencv" -}}
{{- if int .gpu.count -}}
{{- include "bi.refuse" (printf "preprocess gets %d GPU, and prepares on the CPU; set preprocess.preprocessor: gpu, or preprocess.gpu.count: 0" (int .gpu.count)) -}}
{{- end -}}
{{- else -}}
{{- if not (or (int .gpu.count) .runtimeClassName (and $fused (or (int (dig "gpu" "count" 0 $fused)) $fused.runtimeClassName))) -}}
{{- include "bi.refuse" (printf "preprocess.preprocessor is %s, and its pods get no GPU; set preprocess.gpu.count: 1 (and preprocess.gpu.resourceName), or preprocessor: opencv" .preprocessor) -}}
{{- end -}}
{{- if and $fused (not (or $fused.image.tag $fused.image.digest)) -}}
{{- if and (eq .preprocessor "gpu") (not $fused.image.variant) -}}
{{- include "bi.refuse" "preprocess.preprocessor is gpu, and the image of its fused model has no torch; set inference.image.variant: torch" -}}
{{- end -}}
{{- if and (eq .preprocessor "dali") (ne $fused.image.variant "dali") -}}
{{- include "bi.refuse" "preprocess.preprocessor is dali, and the image of its fused model has no DALI; set inference.image.variant: dali" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the door would refuse when it starts (docs/cut.md): list of models, name. */}}
{{- define "bi.checkCut" -}}
{{- $models := index . 0 -}}
{{- $at := printf "models.%s" (index . 1) -}}
{{- $model := get $models (index . 1) -}}
{{- if and (ne $model.cut "f32") (eq $model.link "fused") -}}
{{- include "bi.refuse" (printf "%s.cut is %s, and its link is fused: nothing crosses; leave cut out, or give the model another link" $at $model.cut) -}}
{{- end -}}
{{- if eq $model.cut "jpeg" -}}
{{- if eq $model.task "faces" -}}
{{- include "bi.refuse" (printf "%s.cut is jpeg, and task faces cuts faces out of the image at the door, which has to decode it; set cut to u8, f16 or f32" $at) -}}
{{- end -}}
{{- range $name, $other := $models -}}
{{- if and (eq $model.task "identification") (eq $other.task "faces") -}}
{{- include "bi.refuse" (printf "%s.cut is jpeg, and models.%s (task faces) asks it about parts of images, which are not encoded; set cut to u8, f16 or f32" $at $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* List of where, its values. */}}
{{- define "bi.checkScaling" -}}
{{- $at := index . 0 -}}
{{- $values := index . 1 -}}
{{- $scaling := $values.autoscaling -}}
{{- if ne $scaling.type "none" -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- include "bi.refuse" (printf "%s.autoscaling: minReplicas is %d, maxReplicas %d" $at (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.type "hpa") (not ($values.resources.requests | default dict).cpu) -}}
{{- include "bi.refuse" (printf "%s.autoscaling.type is hpa, which scales by the share of the CPU request; set %s.resources.requests.cpu" $at $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* List of root, where, its values. */}}
{{- define "bi.checkDrain" -}}
{{- $timeoutS := (index . 0).Values.preprocess.timeoutS -}}
{{- $drainS := (index . 2).drainS -}}
{{- if and (float64 $drainS) (lt (float64 $drainS) (float64 $timeoutS)) -}}
{{- include "bi.refuse" (printf "%s.drainS is %v, and a request may take preprocess.timeoutS, %v s: a pod that is stopped would give up what it has in hand; set drainS: 0 (as long as timeoutS), or a lower timeoutS" (index . 1) $drainS $timeoutS) -}}
{{- end -}}
{{- end -}}

{{/* Labels that the chart finds its own objects by: list of where, labels. */}}
{{- define "bi.checkLabels" -}}
{{- $at := index . 0 -}}
{{- range $name, $value := index . 1 -}}
{{- if or (has $name (list "helm.sh/chart" "job-name")) (hasPrefix "app.kubernetes.io/" $name) -}}
{{- include "bi.refuse" (printf "%s has '%s', which is the chart's own: selectors and policies go by it; take another label" $at $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
