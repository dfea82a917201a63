# beyond-inference. `make` alone lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch is 5 GB installed, so it has an environment of its own, made only for what needs it.
TORCH_VENV ?= .venv-torch
TORCH_DOWNLOAD_GB := 3.8
TORCH_INSTALLED_GB := 7.5
PIP_FLAGS := --quiet --disable-pip-version-check

# A stamp per environment: made anew when the dependencies change.
STAMP := $(VENV)/.stamp
TORCH_STAMP := $(TORCH_VENV)/.stamp
MODEL := models/efficientnet-lite0.onnx
FACES := models/mtcnn.onnx
# Its weights; it is read and never installed, for it wants a torch of years ago.
FACENET := facenet_pytorch-2.6.0-py3-none-any.whl

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

# An environment has a mark while it is made: one that was left half-made is made anew, and not taken for a whole one.
define BEGIN_ENVIRONMENT
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed; on Debian: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, this is $$($(PYTHON) --version); set PYTHON=python3.12, say"; exit 1; }
	@test ! -e $(@D)/.half-made || rm -rf $(@D)
endef
define MAKE_ENVIRONMENT
	@mkdir -p $(@D) && touch $(@D)/.half-made
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D) || { echo "Python's venv is missing; on Debian: apt install python3-venv"; exit 1; }
endef
define END_ENVIRONMENT
	@rm $(@D)/.half-made && touch $@
endef

$(STAMP): pyproject.toml
	$(BEGIN_ENVIRONMENT)
	@echo "setting up $(VENV), a minute or two: Python packages, about 270 MB to download, without torch"
	$(MAKE_ENVIRONMENT)
	@$(BIN)/pip install $(PIP_FLAGS) -e '.[kafka,redis,onnxruntime,models,loadgen,figures,dev]'
	$(END_ENVIRONMENT)

# Wheels are in the temporary folder until they are installed, and nowhere after: pip's cache would keep 3 GB more.
$(TORCH_STAMP): pyproject.toml
	$(BEGIN_ENVIRONMENT)
	@test -x $(TORCH_VENV)/bin/pip || $(PYTHON) -m services.local.disk \
		--need $(TORCH_DOWNLOAD_GB) "$${TMPDIR:-/tmp}" "TMPDIR=folder moves it" \
		--need $(TORCH_INSTALLED_GB) $(TORCH_VENV) "make TORCH_VENV=folder moves it"
	@echo "setting up $(TORCH_VENV): torch, torchvision and DALI, about 3.3 GB to download, 7.5 GB installed"
	$(MAKE_ENVIRONMENT)
	@$(TORCH_VENV)/bin/pip install $(PIP_FLAGS) --no-cache-dir -e '.[kafka,redis,onnxruntime,models,loadgen,figures,dev,torch,torch-test,dali]'
	$(END_ENVIRONMENT)

$(MODEL): $(STAMP)
	@$(BIN)/python -m services.models.efficientnet_lite0 --out $@

.cache/models/$(FACENET): | $(STAMP)
	@$(BIN)/pip download $(PIP_FLAGS) --no-deps --only-binary :all: --dest $(@D) facenet-pytorch==2.6.0

$(FACES): $(STAMP) .cache/models/$(FACENET)
	@$(BIN)/python -m services.models.mtcnn --wheel .cache/models/$(FACENET) --out $@

.PHONY: setup
setup: $(STAMP) $(MODEL) $(FACES) ## Set up the environment, the default classifier and the face detector, without torch

# Only where it is asked for: everything else of the suite is installed without root.
.PHONY: setup-redis
setup-redis: ## Install redis-server (root on Debian or Ubuntu); without it what needs Redis is NOT RUN
	@command -v redis-server >/dev/null || { \
	  command -v apt-get >/dev/null && test "$$(id -u)" = 0 || { echo "redis-server is missing; as root on Debian: apt install redis-server; elsewhere: its package manager"; exit 1; }; \
	  echo "installing redis-server"; \
	  { apt-get install -qq -y redis-server || { apt-get update -qq && apt-get install -qq -y redis-server; }; } >/dev/null; }
	@redis-server --version

.PHONY: models
models: $(MODEL) $(FACES) ## Build the ONNX files of the classifier and the face detector from the weights that packages ship

.PHONY: models-tasks
models-tasks: $(TORCH_STAMP) ## Write the seeded random networks of the other tasks as ONNX files: for timing only (takes torch)
	@$(TORCH_VENV)/bin/python -m services.models.seeded

# Without torch (TORCH=0) what needs it is NOT RUN: all that the seeded networks are asked, which it writes.
FIGURES_BIN := $(if $(filter 0,$(TORCH)),$(BIN),$(TORCH_VENV)/bin)
.PHONY: figures
figures: setup $(if $(filter 0,$(TORCH)),,$(TORCH_STAMP)) ## The paper's experiments, and docs/results.md: within 40 minutes (FULL=1: hours; ONLY=e3,e5; TORCH=0: without torch)
	@$(BIN)/python -m services.local preflight --transports fused,grpc,kafka,kafka-python,redis --optional redis
	@$(if $(filter 0,$(TORCH)),:,$(TORCH_VENV)/bin/python -m services.models.seeded --missing)
	@$(FIGURES_BIN)/python -m loadgen figures $(if $(ONLY),--only $(ONLY)) $(if $(FULL),--full)

.PHONY: demo
demo: setup ## The suite with real brokers, real photographs, a load, and the report (JAEGER=1: spans to make jaeger)
	@$(BIN)/python -m services.local preflight --transports fused,grpc,kafka,kafka-python,redis --optional redis
	@$(BIN)/python -m loadgen demo --out results/demo $(if $(JAEGER),--spans $(if $(filter 1,$(JAEGER)),otlp://127.0.0.1:4317,$(JAEGER)) --sample-ratio 0.1)

.PHONY: jaeger
jaeger: setup ## A real Jaeger for spans, in the background: from its image, else built once by Go (make down stops it)
	@$(BIN)/python -m services.local jaeger --detach

.PHONY: up
up: setup ## Start the suite on this machine in the foreground (Ctrl-C stops it)
	@$(BIN)/python -m services.local up

.PHONY: down
# To stop things, no newer packages are installed first.
down: $(if $(wildcard $(BIN)/python),,setup) ## Stop what `make up` and `make jaeger` started, also after a crash
	@$(BIN)/python -m services.local down

.PHONY: test
# In more processes than there are CPUs: most tests wait for brokers and services that start, die and come back.
test: setup ## All tests but injection's, Jaeger's and torch's: unit, contract, integration, with real brokers, the chart
	@$(BIN)/python -m services.local preflight --transports fused,grpc,kafka,kafka-python,redis --optional redis
	@$(BIN)/python -m tests.chart.helm --optional
	@status=0; here="not torch and not jaeger and not injection and not e2e"; \
	$(BIN)/python -m pytest -m "$$here and not alone" -q -n auto || status=$$?; \
	$(BIN)/python -m pytest -m "$$here and alone" -q || status=$$?; \
	exit $$status

.PHONY: test-injection
test-injection: setup ## Delays injected into every place, on every transport: does the ledger say where?
	@$(BIN)/python -m pytest -m injection -q

.PHONY: test-jaeger
test-jaeger: setup ## The tests with a real Jaeger, which is built once, in about ten minutes, where no container engine is
	@$(BIN)/python -m services.local preflight --transports fused,grpc,kafka,kafka-python,redis --optional redis
	@$(BIN)/python -m pytest -m jaeger -q --timeout 3600

.PHONY: test-torch
test-torch: $(TORCH_STAMP) $(MODEL) $(FACES) ## The tests that need torch, in an environment of their own
	@$(TORCH_VENV)/bin/python -m pytest -m torch -q

.PHONY: test-gpu
test-gpu: $(TORCH_STAMP) $(MODEL) ## On a machine with an NVIDIA GPU: the contract suites on it (TENSORRT=1: TensorRT too, 4 GB more)
	@$(TORCH_VENV)/bin/python -c 'import sys, torch; sys.exit(torch.cuda.device_count() == 0)' || { echo "torch sees no CUDA device here: check nvidia-smi"; exit 1; }
	@$(if $(TENSORRT),$(TORCH_VENV)/bin/pip install $(PIP_FLAGS) --no-cache-dir 'tensorrt>=10,<11')
	@$(TORCH_VENV)/bin/python -m pytest tests/contract/test_backends.py tests/contract/test_preprocessors.py -m torch -q

.PHONY: test-unit
test-unit: setup ## Unit tests only: seconds
	@$(BIN)/python -m pytest tests/unit tests/test_architecture.py -m "not torch" -q

# perf_analyzer comes in a wheel of tritonclient; it wants libb64, and a CUDA runtime library also where there is no GPU.
PERF := .cache/perf-analyzer
PERF_BIN := $(PERF)/tritonclient-2.41.0.data/data/bin/perf_analyzer
PERF_LIB := $(PERF)/nvidia/cuda_runtime/lib

$(PERF_BIN): | $(STAMP)
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "perf_analyzer is built for Linux on x86-64 only, this is $$(uname -sm)"; exit 1; }
	@echo "fetching perf_analyzer and a CUDA runtime library, 16 MB"
	@mkdir -p $(PERF)
	@$(BIN)/pip download $(PIP_FLAGS) --no-deps --only-binary :all: --platform manylinux1_x86_64 --dest $(PERF) tritonclient==2.41.0
	@$(BIN)/pip download $(PIP_FLAGS) --no-deps --only-binary :all: --platform manylinux2014_x86_64 --dest $(PERF) 'nvidia-cuda-runtime-cu12>=12,<13'
	@for wheel in $(PERF)/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(PERF); done
	@chmod +x $@

.PHONY: perf-analyzer
perf-analyzer: setup $(PERF_BIN) ## Triton's perf_analyzer against the door: fetches it, runs its test, prints its report
	@missing=$$(LD_LIBRARY_PATH=$(PERF_LIB) ldd $(PERF_BIN) | awk '/not found/ {print $$1}'); \
	test -z "$$missing" || { echo "perf_analyzer needs" $$missing "; on Debian: apt install libb64-0d"; exit 1; }
	@LD_LIBRARY_PATH=$(PERF_LIB) BEYOND_PERF_ANALYZER=$(PERF_BIN) $(BIN)/python -m pytest tests/integration/test_perf_analyzer.py -q -s

.PHONY: check
check: setup ## Format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: bench
bench: setup ## What a hop costs, transport by transport: latency, CPU per request, requests per second
	@$(BIN)/python tests/benchmarks/bench_transports.py

.PHONY: helm
helm: setup ## Helm: the path of the one that is there, else builds it once by Go (three to ten minutes)
	@$(BIN)/python -m tests.chart.helm

CHART := charts/beyond-inference

.PHONY: chart
chart: helm ## Lint the chart and run its tests: rendering, schemas of three Kubernetes versions, refusals
	@$$($(BIN)/python -m tests.chart.helm) lint --strict $(CHART)
	@$(BIN)/python -m pytest tests/chart -q

.PHONY: chart-docs
chart-docs: setup ## Write the chart's README anew from values.yaml
	@$(BIN)/python -m charts.readme $(CHART)

RELEASE ?= beyond
NAMESPACE ?= default

.PHONY: loadtest
loadtest: helm ## A plan from a Job beside an installed release: make loadtest PLAN=loadgen/plans/example.toml (PODS=, ENTRANCE=frames, RELEASE=, NAMESPACE=, WAIT=)
	@test -n "$(PLAN)" || { echo "name a plan: make loadtest PLAN=loadgen/plans/example.toml"; exit 1; }
	@$(BIN)/python -m charts.loadtest $(PLAN) --release $(RELEASE) --namespace $(NAMESPACE) $(if $(PODS),--pods $(PODS)) $(if $(ENTRANCE),--entrance $(ENTRANCE)) $(if $(WAIT),--wait-s $(WAIT)) --helm $$($(BIN)/python -m tests.chart.helm)

.PHONY: protos
protos: $(STAMP) ## Generate services/pb from protos/
	@$(BIN)/python protos/generate.py

# uv resolves and hashes; it has an environment of its own.
.PHONY: lock
lock: ## Lock the packages of the images anew, by version and hash (asks the package index)
	@test -x .cache/lock/bin/uv || { $(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install $(PIP_FLAGS) uv; }
	@images/lock.sh .cache/lock/bin/uv

ENGINE ?=
BASE_IMAGE ?=
IMAGES := $(PYTHON) -m images
IMAGE_FLAGS = $(if $(ENGINE),--engine $(ENGINE))

.PHONY: images
images: ## Build the container images, with docker, podman or buildah (ENGINE=, BASE_IMAGE=)
	@$(IMAGES) build $(IMAGE_FLAGS) $(if $(BASE_IMAGE),--base $(BASE_IMAGE))

.PHONY: images-push
images-push: ## Build and push them: make images-push REGISTRY=registry.example/team
	@test -n "$(REGISTRY)" || { echo "name the registry: make images-push REGISTRY=registry.example/team"; exit 1; }
	@$(MAKE) --no-print-directory images
	@$(IMAGES) push $(IMAGE_FLAGS) --registry $(REGISTRY)

.PHONY: kind-load
kind-load: ## Build and load them into a kind cluster (KIND_CLUSTER=kind)
	@command -v kind >/dev/null || { echo "kind is missing: see https://kind.sigs.k8s.io"; exit 1; }
	@$(MAKE) --no-print-directory images
	@$(IMAGES) save $(IMAGE_FLAGS) --folder .cache/images preprocess inference loadgen
	@for archive in preprocess inference loadgen; do kind load image-archive .cache/images/$$archive.tar --name $(or $(KIND_CLUSTER),kind); done

CLUSTER := $(PYTHON) -m tests.e2e.cluster
BASE_FLAGS = $(IMAGE_FLAGS) $(if $(BASE_IMAGE),--base $(BASE_IMAGE))
CLUSTER_UP = $(CLUSTER) up && $(IMAGES) build $(BASE_FLAGS) && $(IMAGES) third-party $(BASE_FLAGS) && $(CLUSTER) load

.PHONY: cluster-up
cluster-up: ## A real single-node Kubernetes on this machine with the images in it (Linux, root; first time: 10 to 20 minutes)
	@$(CLUSTER_UP)

.PHONY: cluster-down
cluster-down: ## Stop it and remove all of it (what was built stays in ~/.cache/beyond-inference, images with the engine)
	@$(CLUSTER) down

# A cluster that is named on the command line is taken as it is; else one is started here, and stopped if it was not there.
E2E := $(BIN)/python -m pytest tests/e2e -q --durations=0
ifeq ($(origin KUBECONFIG),command line)
.PHONY: e2e
e2e: setup $(if $(REGISTRY),images-push)
	@test -n "$(REGISTRY)" || echo "no REGISTRY=: the cluster is taken to have the images"
	@BEYOND_E2E=given KUBECONFIG=$(KUBECONFIG) BEYOND_E2E_REGISTRY=$(REGISTRY) BEYOND_E2E_VALUES="$(VALUES)" $(E2E)
else
.PHONY: e2e
e2e: setup ## The suite in a real Kubernetes, by its chart (KUBECONFIG= REGISTRY= VALUES= for a cluster of yours; KEEP=1: goes on)
	@$(CLUSTER) preflight
	@if ! $(CLUSTER) running && test -z "$(KEEP)"; then trap '$(CLUSTER) down' EXIT; fi; \
	$(CLUSTER_UP) && BEYOND_E2E=local $(E2E)
endif

.PHONY: clean
clean: ## Remove environments, models and results (not .local, and not the cache of Kafka's jars)
	@rm -rf $(VENV) $(TORCH_VENV) models/*.onnx results samples build *.egg-info
