# Every target sets the project's own environment up first; that does nothing where it is current.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.current
# A Python that is new enough: the first of these that is installed, or say `make PYTHON=/path/to/python`.
PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))

.PHONY: setup demo test test-slow lint format docs bench kernels kernels-some gpu gpu-wheels gpu-rehearsal pretrained results-in-context results-memory results-heads results-dictionaries results-paper results-published results-quickstart ui clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tests,docs,fla]"
	-@$(BIN)/python -m kernels.native >/dev/null
	@touch $@

demo: setup
	@$(BIN)/cl-ovq demo

# Two processes, a file of tests in one of them: what a file's tests share is made once.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow --hypothesis-profile random

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/mkdocs build --quiet

bench: setup
	$(BIN)/cl-ovq bench training
	$(BIN)/cl-ovq bench operator

# Every kernel in every configuration, compiled for GPUs that need not be here: about 40 minutes on two cores the first time;
# what was compiled before is not compiled again. To be run, and its table committed, after a kernel or a tile was changed.
kernels: setup
	$(BIN)/python -m kernels.triton.compile --jobs 2 --output docs/results/kernels

# A quarter of them: both head sizes, and every option at one of them.
kernels-some: setup
	$(BIN)/python -m kernels.triton.compile --jobs 2 --dtypes bfloat16,float32 --heads 64,128 --chunks 128 --no-variants
	$(BIN)/python -m kernels.triton.compile --jobs 2 --dtypes bfloat16,float32 --heads 64 --chunks 128

# Everything that needs an NVIDIA GPU, in ten minutes, with the machine's own Python: no set-up, no network. What is cut
# off goes on when called again. GPU='--minutes 5' and the like; `python3 -m cl_ovq.benchmarks.gpu --help` lists them.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) -m cl_ovq.benchmarks.gpu $(GPU)

# What such a machine lacks, to be copied there with the checkout.
gpu-wheels: setup
	$(BIN)/python -m cl_ovq.benchmarks.gpu.wheels .gpu-wheels

# The same run without a GPU, with such a machine's packages, at tiny sizes.
gpu-rehearsal: setup
	$(BIN)/python -m cl_ovq.benchmarks.gpu.rehearsal

# The table of memory heads in docs/RESULTS.md: five seeds each, a few minutes on one core.
MEMORY_RUN := $(BIN)/cl-ovq run
MEMORY_KEYS := seeds=5 threads=1 tracking.enabled=false evaluation.dictionary_every=1000
results-memory: setup
	rm -rf runs/results-memory
	$(MEMORY_RUN) split_fashion_mnist_memory $(MEMORY_KEYS) output_dir=runs/results-memory/pixels
	$(MEMORY_RUN) split_fashion_mnist_memory $(MEMORY_KEYS) memory.storage=float16 output_dir=runs/results-memory/pixels_float16
	$(MEMORY_RUN) split_fashion_mnist_memory $(MEMORY_KEYS) memory.storage=int8 output_dir=runs/results-memory/pixels_int8
	$(MEMORY_RUN) split_fashion_mnist_memory $(MEMORY_KEYS) memory.capacity=10 memory.class_weight=1 output_dir=runs/results-memory/one_slot_per_class
	$(MEMORY_RUN) split_fashion_mnist_memory_convolution $(MEMORY_KEYS) output_dir=runs/results-memory/convolution
	$(MEMORY_RUN) split_fashion_mnist_memory_convolution $(MEMORY_KEYS) memory.capacity=10 memory.class_weight=1 output_dir=runs/results-memory/convolution_one_slot_per_class
	$(MEMORY_RUN) split_digits_memory $(MEMORY_KEYS) output_dir=runs/results-memory/digits
	$(MEMORY_RUN) split_fashion_mnist_memory $(MEMORY_KEYS) memory.capacity=500 output_dir=runs/results-memory/pixels_500
	for run in runs/results-memory/*/; do cp $$run/seeds.json docs/results/memory_$$(basename $$run).json; done

# The weights that `learner.weights=pretrained` reads: five minutes on one core.
pretrained: setup
	$(BIN)/cl-ovq pretrain in_context_digits learner.weights=gaussian_classes learner.samples=30 learner.steps=4000 \
		--output cl_ovq/in_context/pretrained.pt

# Classes learned in the state alone, in docs/RESULTS.md: an hour and a half on one core, once the typefaces of docs/data.md are installed;
# what is done is skipped. The small encoder of characters is learned first, and its features are written to two files.
GLYPHS := runs/in_context
NETWORK := --import experiments/glyph_network.py
results-in-context: setup $(GLYPHS)/meta_train.npz $(GLYPHS)/meta_test.npz
	$(BIN)/cl-ovq study in_context_glyphs --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study in_context_episodes --jobs $(JOBS) --output docs/results

$(GLYPHS)/glyph_encoder.pth:
	$(BIN)/cl-ovq run glyph_encoder output_dir=$(GLYPHS)/encoder --resume
	$(BIN)/cl-ovq weights $(GLYPHS)/encoder $(NETWORK) --output $@

$(GLYPHS)/meta_train.npz: $(GLYPHS)/glyph_encoder.pth
	$(BIN)/cl-ovq features glyph_features stream.classes=2400 --output $@

$(GLYPHS)/meta_test.npz: $(GLYPHS)/glyph_encoder.pth
	$(BIN)/cl-ovq features glyph_features stream.skip=2400 stream.difference=14 --output $@

# Heads on features that stay, at equal bytes, in docs/RESULTS.md: about five hours on one core; what is done is skipped.
JOBS ?= 1
results-heads: setup $(GLYPHS)/meta_test.npz
	$(BIN)/cl-ovq study features_digits --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study features_glyphs --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study features_fashion --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study features_glyph_images --jobs $(JOBS) --output docs/results

# The tables of dictionaries that persist in docs/RESULTS.md: about two hours on one core; what is done is skipped.
results-dictionaries: setup
	$(BIN)/cl-ovq study dictionaries --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study drift --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq bench operations --output docs/results/operations.json

# The tasks of the paper, and ablations of OVQ: hours on two cores; what was done before a stop is not done again.
results-paper: setup
	$(BIN)/cl-ovq study paper --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study paper_sharpened --jobs $(JOBS) --output docs/results
	$(BIN)/cl-ovq study paper_ablations --jobs $(JOBS) --output docs/results

# Published numbers beside ours, in docs/RESULTS.md; rows whose data is not there are said to be so.
results-published: setup
	$(BIN)/cl-ovq published --jobs $(JOBS) --output docs/results/published.md

# The table of the quickstart over seeds in docs/RESULTS.md.
QUICK_KEYS := seeds=5 tracking.enabled=false evaluation.dictionary_every=100
results-quickstart: setup
	rm -rf runs/results-quickstart
	$(BIN)/cl-ovq run quickstart $(QUICK_KEYS) output_dir=runs/results-quickstart/stream
	$(BIN)/cl-ovq run quickstart $(QUICK_KEYS) dictionary.scope=task output_dir=runs/results-quickstart/task
	$(BIN)/cl-ovq run quickstart $(QUICK_KEYS) dictionary.scope=sequence output_dir=runs/results-quickstart/sequence
	$(BIN)/cl-ovq run quickstart $(QUICK_KEYS) model.mixer=softmax output_dir=runs/results-quickstart/softmax
	for run in runs/results-quickstart/*/; do cp $$run/seeds.json docs/results/quickstart_$$(basename $$run).json; done

ui: setup
	@$(BIN)/cl-ovq ui

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
