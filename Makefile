# Plumbline. `make demo` and `make test` set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCENARIO ?= good
SEED ?= 0
WORKSPACE ?= runs
PYTEST_WORKERS ?= 2
# Where torch comes from, e.g. TORCH_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a small CPU build.
TORCH_ARGS ?=
# Of the images. PREFIX stands before their names, e.g. registry.example.com/team/
ENGINE ?= docker
BASE_IMAGE ?= localhost/plumbline-base:bookworm
BUILD_IMAGE ?= $(if $(filter localhost/plumbline-base:bookworm,$(BASE_IMAGE)),localhost/plumbline-build-base:bookworm,$(BASE_IMAGE))
PREFIX ?=
TORCH_WHEEL ?=

# One thread a process: tiny models on a small machine are many times slower with more. No telemetry.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast golden lint format manifests bench-ppo load-review ui clean

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Virtual environment with every version pinned

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_ARGS) -c constraints.txt torch -e '.[data,train,review,dev,load]'
	touch $@

demo: $(STAMP) ## The main job: SCENARIO=good | overoptimized | forced | people, SEED=0
	$(BIN)/plumbline demo --scenario $(SCENARIO) --seed $(SEED) --workspace $(WORKSPACE)

test: $(STAMP) ## Every test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup

test-fast: $(STAMP) ## Tests that train nothing large
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m 'not slow'

golden: $(STAMP) ## Write anew what each compiled pipeline asks of a cluster (tests/pipelines/golden); read the diff
	$(BIN)/python -m pytest -q tests/pipelines/test_golden.py --golden

lint: $(STAMP) ## Style, imports and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

manifests: $(STAMP) ## Build and check every Kubernetes overlay (needs kubectl); OVERLAY=path: is it fit to be applied?
	$(BIN)/python -m tests.k8s $(if $(OVERLAY),--final $(OVERLAY))

format: $(STAMP) ## Let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-ppo: $(STAMP) ## PPO against trl 1.12.0: speed, memory, parity (at most 15 minutes)
	$(BIN)/python -m benchmarks.ppo.compare

load-review: $(STAMP) ## The review service under load: 50 raters, 100 requests/s, Postgres; then killed mid-load
	$(BIN)/python -m benchmarks.review.load $(LOAD_ARGS)

.PHONY: base-image images e2e-containers locks
base-image: ## Base images of the images below, by debootstrap, where no image registry is in reach (root)
	ENGINE=$(ENGINE) docker/base_image.sh localhost/plumbline-base:bookworm python3 ca-certificates
	ENGINE=$(ENGINE) docker/base_image.sh localhost/plumbline-build-base:bookworm python3 python3-venv ca-certificates

images: $(STAMP) ## Images light, train and review: ENGINE=docker|podman BASE_IMAGE=...@sha256:... (docker/README.md)
	$(BIN)/python docker/build.py --engine $(ENGINE) --base $(BASE_IMAGE) --build-base $(BUILD_IMAGE) \
	  --prefix "$(PREFIX)" $(if $(TORCH_WHEEL),--torch-wheel $(TORCH_WHEEL)) $(IMAGES_ARGS)

e2e-containers: $(STAMP) ## The whole pipeline in containers, on a Docker Engine of its own (root); leaves $(WORKSPACE)/latest
	PLUMBLINE_REQUIRE_DOCKER=1 PLUMBLINE_E2E_WORKSPACE=$(WORKSPACE) \
	  $(BIN)/python -m pytest -v -rA tests/docker/test_pipeline_in_containers.py $(E2E_ARGS)

locks: $(STAMP) ## What the images install, anew from constraints.txt (needs uv)
	docker/lock.sh

ui: $(STAMP) ## MLflow's UI on the local runs
	$(BIN)/plumbline ui --workspace $(WORKSPACE)

clean: ## Remove local runs and caches (keeps the environment)
	rm -rf $(WORKSPACE) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
