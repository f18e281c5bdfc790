# make demo, test, install PREFIX=DIR, header, lint, clean. Each does all its set-up; what is missing is named.
#
#   MOE_CUDA=0          the CPU backend alone, without nvcc
#   MOE_CUDA_ARCHS=all  kernels for every architecture, as releases have them; or a list: see build.rs
#   LIBMOE=path         a library that is built already
#   TORCH=0             make test without PyTorch, a download of 2.4 GB
#   DEVICE=cuda:0       make demo and make test on a GPU
#   QUICK=1             make demo in 20 seconds
#   RECORD=1            make test writes its time to benches/results

PREFIX ?= /usr/local
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

# Without a GPU the demo has no use for the kernels, which take minutes to compile.
demo: export MOE_CUDA ?= $(if $(findstring cuda,$(DEVICE))$(LIBMOE),1,0)

.PHONY: demo test install header lint clean

demo:
	@scripts/setup.sh demo nvcc $(if $(findstring cuda,$(DEVICE)),torch)
	@scripts/build.sh
	@.venv/bin/python examples/demo/train.py

test:
	@scripts/setup.sh test nvcc
	@.venv/bin/python scripts/test.py

install:
	@scripts/setup.sh nvcc
	@scripts/build.sh
	@scripts/install.sh "$(PREFIX)"

# Rewrites what is generated from the sources and committed.
header:
	@MOE_BLESS=1 MOE_CUDA=0 scripts/build.sh test --test header

lint:
	@cargo fmt --check
	@scripts/setup.sh nvcc
	@scripts/build.sh clippy --all-targets -- -D warnings

clean:
	@cargo clean --quiet
	@rm -rf build demo-output
