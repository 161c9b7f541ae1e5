# make study, make test, make lab, make book and make lint each make .venv by themselves, once.
# On Windows, or with conda, see README.md.

# The Python that .venv is made from, such as PYTHON=python3.12.
PYTHON ?= python3
# The parameter file of `make study` and `make book`.
STUDY = params/pocket.yaml
# Passed to pip install: an index for the CPU build of torch, a proxy, a folder of wheels.
PIP_ARGS ?=
# Passed to JupyterLab: --no-browser, --port=8890.
LAB_ARGS ?=

VENV_PYTHON = .venv/bin/python

.PHONY: help study test test-slow lab book lint clean

help:  ## this list (the default)
	@echo "Usage: make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: STUDY=$(STUDY)  PYTHON=$(PYTHON)  PIP_ARGS=$(PIP_ARGS)  LAB_ARGS=$(LAB_ARGS)"

study: .venv/.installed  ## run all five notebooks on STUDY, write outputs/<study>/report.html
	.venv/bin/w2s run "$(STUDY)"

test: .venv/.installed  ## run the tests (about 2 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/.installed  ## run what is slow by nature: whole studies, coverage of intervals, every architecture
	$(VENV_PYTHON) -m pytest -m slow

# The file is the JupyterLab of .venv's alone: no question about news, no look for updates, unless a user turns them on.
lab: .venv/.installed  ## open JupyterLab at notebook 00, with the kernel of .venv
	@mkdir -p .venv/lab
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
		> .venv/lab/overrides.json
	$(VENV_PYTHON) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.app_settings_dir="$(CURDIR)/.venv/lab" \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

book: .venv/.installed  ## a site of what make study left for STUDY: outputs/book/index.html, read without a server
	$(VENV_PYTHON) docs/book.py "$(STUDY)"

lint: .venv/.installed  ## check the code and the notebooks with ruff
	$(VENV_PYTHON) -m ruff check .

clean:  ## remove .venv; results under outputs/ stay
	rm -rf .venv

# The stamp is written last and --clear starts afresh, so a broken half-made .venv is never used.
.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || { \
		found=$$("$(PYTHON)" --version 2>&1) || found=missing; \
		echo "w2s needs Python 3.11 to 3.14, and $(PYTHON) is $$found; name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	@[ "$$(uname -s)" != Linux ] || ! builds=$$($(VENV_PYTHON) -m pip index versions torch $(PIP_ARGS) 2>/dev/null) || \
		case "$$builds" in *+cpu*) ;; *) \
			echo "Note: pip finds no CPU build of torch here, so it may download several GB for CUDA." \
				"To avoid that, press Ctrl-C and see PIP_ARGS in README.md." ;; esac
	PIP_USER=0 $(VENV_PYTHON) -m pip install $(PIP_ARGS) -e ".[test]" -c constraints.txt
	@touch $@
