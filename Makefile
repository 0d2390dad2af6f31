.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHONSAFEPATH := 1  # keep this folder's `kernels` off sys.path: it would hide Hugging Face's
PACKAGES := kernels stores pipeline
PYTHON ?= python3
BIN := .venv/bin

empty :=
space := $(empty) $(empty)
comma := ,

# The stages' variables; more options with ARGS="--option value".
STORE ?= store
PAIR_SET ?= pairs
MODEL ?=
DATA ?=
LOSS ?= sigmoid
BETA ?=
CONFIG ?=
OUT ?= runs/$(PAIR_SET)-$(subst $(space),+,$(strip $(LOSS)))$(if $(BETA),-beta$(BETA))
Q ?= runs
ARGS ?=

.PHONY: help install demo add score reward train sweep query report check lint types test faults test-gpu \
	bench bench-gpu docs docs-test frontier pareto simpo-analysis baselines clean

help:  ## List the commands and their variables
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables, as they are now; options of a stage go into ARGS="--name value":\n'
	@$(foreach name,STORE PAIR_SET MODEL DATA LOSS BETA CONFIG OUT Q ARGS,\
		printf '  %-10s %s\n' '$(name)' '$($(name))';)

install: .venv/installed  ## Set up .venv with the tested versions and the package, editable

.venv/installed: pyproject.toml constraints.txt
	@$(if $(wildcard $@),echo "Updating .venv: pyproject.toml or constraints.txt has changed.",\
		echo "First run: installs torch$(comma) transformers$(comma) DuckDB and the tools into .venv$(comma) once. That takes minutes and"; \
		echo "about 3 GB of disk; several GB more where torch comes with CUDA. Then it runs: $(or $(MAKECMDGOALS),install).")
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	@echo "Installing torch, the largest part ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@echo "Installing offpref, what it imports, and the tools ..."
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable . --group dev
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .venv/duckdb-1.4 duckdb==1.4.5  # a test's
	@touch $@

.dev: Makefile  # a view of the tree under its import name, for mypy and editors
	@mkdir -p .dev/offpref
	@$(foreach package,$(PACKAGES),ln -sfn ../../$(package) .dev/offpref/$(package);)
	@$(foreach file,__init__.py py.typed,ln -sfn ../../offpref/$(file) .dev/offpref/$(file);)
	@touch .dev

demo: install  ## Run every stage on an embedded small world, offline, in minutes
	$(BIN)/offpref demo .demo

add: install  ## Put DATA into STORE as PAIR_SET, with the tokenizer of MODEL
	@$(call need,MODEL) $(call need,DATA)
	$(BIN)/offpref add $(STORE) --data $(DATA) --pair-set $(PAIR_SET) --tokenizer $(MODEL) $(ARGS)

score: install  ## Stage one: score PAIR_SET with MODEL, what is missing; DATA is added first
	@$(call need,MODEL)
	$(BIN)/offpref score $(STORE) --pair-set $(PAIR_SET) --model $(MODEL) \
		$(if $(DATA),--data $(DATA)) $(if $(filter kto,$(LOSS)),--kl-pairs) \
		$(if $(filter tdpo1 tdpo2,$(LOSS)),--tier hidden) \
		$(if $(filter score,$(MAKECMDGOALS)),$(ARGS))

FREE := simpo orpo cpo slic rrhf sft unlikelihood  # losses that need no reference

train: $(if $(filter-out $(FREE),$(LOSS)),score,$(if $(DATA),add,install))  ## Stage two: train MODEL on PAIR_SET with LOSS into OUT, unless it is there; scores first
	@$(call need,MODEL)
	$(BIN)/offpref train $(STORE) --pair-set $(PAIR_SET) --model $(MODEL) --output-dir $(OUT) \
		$(addprefix --loss-type ,$(LOSS)) $(if $(BETA),--beta $(BETA)) $(if $(CONFIG),--config $(CONFIG)) \
		--resume $(if $(filter train,$(MAKECMDGOALS)),$(ARGS))

sweep: install  ## Stage two: train every run that CONFIG names and that is not trained yet
	@$(call need,CONFIG)
	$(BIN)/offpref sweep $(STORE) $(CONFIG) $(ARGS)

query: $(if $(MODEL),train,install)  ## Stage three: answer Q; with MODEL, score and train what is missing
	$(BIN)/offpref query $(STORE) "$(Q)" $(if $(filter query,$(MAKECMDGOALS)),$(ARGS))

reward: install  ## Stage one: margin rewards of PAIR_SET, ARGS="--objective NAME --from ..."
	$(BIN)/offpref reward $(STORE) --pair-set $(PAIR_SET) $(ARGS)

report: $(if $(MODEL),train,install)  ## Stage three: a page to look at, report.html; with MODEL, score and train what is missing
	$(BIN)/offpref report $(STORE) -o report.html $(if $(filter report,$(MAKECMDGOALS)),$(ARGS))

check: lint types  ## Style and types; with `make test`, all that a pull request must pass

lint: install  ## Check style without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install .dev  ## Check the types
	$(BIN)/mypy

test: export TRITON_INTERPRET := 1
test: export OMP_NUM_THREADS := 1  # a process a core, each with a thread
test: install .dev  ## Run the tests that need no GPU, kernels in Triton's interpreter
	$(BIN)/python -m pytest -m "not gpu" --numprocesses auto --dist worksteal $(ARGS)

faults: export OFFPREF_FAULTS := long
faults: export OMP_NUM_THREADS := 1
faults: install  ## Run the long campaign: flipped bits, kills, hostile stores, refused system calls (minutes)
	$(BIN)/python -m pytest tests/stores/test_faults.py tests/stores/test_hostile_stores.py tests/stores/test_crash.py tests/stores/test_scale.py \
		--numprocesses auto --dist worksteal -s $(ARGS)

test-gpu: install  ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

docs: export PYTHONPATH := docs/site
docs: export NO_MKDOCS_2_WARNING := 1
docs: install  ## Build the site of the documentation, .docs/site, strictly; needs the group `docs`
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/python docs/site/site_pages.py .docs/pages
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "built: .docs/site/index.html; with its search: python3 -m http.server --directory .docs/site"

docs-test: export OMP_NUM_THREADS := 1
docs-test: docs .dev  ## Test the pages alone: links, examples, notebooks, reference, the site
	$(BIN)/python -m pytest tests/project/test_pages.py tests/project/test_page_examples.py \
		tests/project/test_site.py tests/project/test_readme.py $(ARGS)

bench: export PYTHONPATH := benchmarks
bench: install  ## Measure side by side with TRL on this machine's CPU; needs the group `bench`
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-gpu: export PYTHONPATH := benchmarks
bench-gpu: install  ## Measure the kernels on a GPU, as shares of a copy and of a product
	$(BIN)/python benchmarks/kernels_gpu.py $(ARGS)

SETTING ?= small
MOVIES ?=
RECIPE = cd recipes && PYTHONSAFEPATH= OMP_NUM_THREADS=1 ../$(BIN)/python
RECIPES_NEED = $(BIN)/python -m pip install --quiet --constraint constraints.txt --group recipes
RUN = --setting $(SETTING) $(ARGS)
FINDINGS = $(if $(filter small,$(SETTING)),$(RECIPE) findings.py ../docs/findings ../docs,true)
RESULTS = $(if $(filter small,$(SETTING)),../docs/findings,../.recipes/$(SETTING))

frontier: install  ## Recipe: reward against KL of DPO, TDPO and baselines; SETTING=large, MOVIES=folder of reviews
	$(RECIPE) frontier.py ../.recipes $(RESULTS)/frontier.json $(RUN) $(if $(MOVIES),--movies $(abspath $(MOVIES)))
	@$(FINDINGS)

pareto: install  ## Recipe: fronts of two objectives by MODPO, MORLHF, soups, loss weighting, best-of-n; likewise
	$(RECIPE) pareto.py ../.recipes $(RESULTS)/pareto.json $(RUN)
	@$(FINDINGS)

simpo-analysis: install  ## Recipe: SimPO, its ablations and its baselines: reward, length, rank agreement; likewise
	$(RECIPE) simpo_analysis.py ../.recipes $(RESULTS)/simpo.json $(RUN)
	@$(FINDINGS)

baselines: install  ## Recipe: PPO, RLOO and over-optimisation beside DPO; likewise
	@$(RECIPES_NEED)
	$(RECIPE) baselines.py ../.recipes $(RESULTS)/baselines.json $(RUN)
	@$(FINDINGS)

clean:  ## Remove what the other commands made, but no store
	rm -rf .venv .dev .demo .docs .recipes build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

need = $(if $($(1)),,echo "make $@: expected $(1)=..., see make help" >&2; exit 1;)
