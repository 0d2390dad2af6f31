.DEFAULT_GOAL := help
export PYTHONSAFEPATH := 1  # keep this folder's `kernels` off sys.path: it would hide Hugging Face's
PACKAGES := kernels stores pipeline
types: .dev
	mypy
.dev: Makefile  # a view of the tree under its import name, for mypy and editors
	@mkdir -p .dev/offpref
	@$(foreach package,$(PACKAGES),ln -sfn ../../$(package) .dev/offpref/$(package);)
	@touch .dev
