{{/* Kubernetes' quantities as whole numbers, and what is derived from them. */}}

{{/* A quantity of CPU in thousandths; 0 where there is none. */}}
{{- define "bi.millicores" -}}
{{- $text := default "" . | toString -}}
{{- if not $text -}}
0
{{- else if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | atoi -}}
{{- else -}}
{{- mulf (float64 $text) 1000 | int64 -}}
{{- end -}}
{{- end -}}

{{/* A quantity of memory in MiB; 0 where there is none. */}}
{{- define "bi.mebibytes" -}}
{{- $text := default "" . | toString -}}
{{- $number := regexFind "^[0-9.]+([eE][0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- if not $text -}}
0
{{- else if not (hasKey $bytes $unit) -}}
{{- fail (printf "beyond-inference: '%s' is no quantity of memory; write 512Mi or 2Gi" $text) -}}
{{- else -}}
{{- divf (mulf (float64 $number) (get $bytes $unit)) 1048576.0 | int64 -}}
{{- end -}}
{{- end -}}

{{/* Whole CPUs of a limit; 0 without one, at least 1 with one. */}}
{{- define "bi.cpus" -}}
{{- $limit := include "bi.millicores" ((.limits | default dict).cpu) | int -}}
{{- if $limit -}}
{{- max 1 (div $limit 1000) -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* Resources of a door that has a model in its process: list of the door's, the model's. Sums. Where one of them has no
limit the sum has none; a request that is missing is nothing to add. */}}
{{- define "bi.sum" -}}
{{- $door := index . 0 -}}
{{- $model := index . 1 -}}
{{- range $kind := list "requests" "limits" }}
{{- $a := get $door $kind | default dict }}
{{- $b := get $model $kind | default dict }}
{{- if or $a $b }}
{{ $kind }}:
  {{- if or (and $a.cpu $b.cpu) (and (eq $kind "requests") (or $a.cpu $b.cpu)) }}
  cpu: {{ printf "%dm" (add (include "bi.millicores" $a.cpu | int) (include "bi.millicores" $b.cpu | int)) }}
  {{- end }}
  {{- if or (and $a.memory $b.memory) (and (eq $kind "requests") (or $a.memory $b.memory)) }}
  memory: {{ printf "%dMi" (add (include "bi.mebibytes" $a.memory | int) (include "bi.mebibytes" $b.memory | int)) }}
  {{- end }}
  {{- range $name, $quantity := omit (merge (dict) $a $b) "cpu" "memory" }}
  {{ $name }}: {{ $quantity | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The model instances of an engine: its values. */}}
{{- define "bi.instances" -}}
{{- if int .instances -}}
{{- int .instances -}}
{{- else if ne .device "cpu" -}}
1
{{- else -}}
{{- max 1 (div (include "bi.cpus" .resources | int) (int .threads)) -}}
{{- end -}}
{{- end -}}

{{/* Seconds that SIGTERM leaves to what is in hand: list of root, the service's values. A request may take as long as the
door's timeoutS, wherever it is. */}}
{{- define "bi.drainS" -}}
{{- $own := (index . 1).drainS -}}
{{- if float64 $own -}}
{{- $own -}}
{{- else -}}
{{- (index . 0).Values.preprocess.timeoutS -}}
{{- end -}}
{{- end -}}

{{/* Seconds between a pod's leaving its Services and SIGTERM. Callers over gRPC must have looked for pods anew by then:
gRPC ends a connection up to a tenth later than its age, and DNS may be some seconds old. */}}
{{- define "bi.preStopS" -}}
{{- if float64 . -}}
{{- add 6 (ceil (mulf 1.1 .) | int) -}}
{{- else -}}
5
{{- end -}}
{{- end -}}

{{/* What Redis may fill, in MiB: its values. Half of the limit; the rest is for its buffers, and for the pages that change
while its file is written anew. */}}
{{- define "bi.maxmemoryMi" -}}
{{- div (include "bi.mebibytes" (.resources.limits | default dict).memory | int64) 2 -}}
{{- end -}}
