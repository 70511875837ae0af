#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most eight minutes, without a network: builds
# the kernels for this GPU, runs the CUDA tests, looks for memory errors and races, measures.
#
#   benchmarks/gpu.sh [OUTPUT_DIR]
#
# Needs nvcc with compute-sanitizer, and of Python's packages torch with CUDA, numpy, scipy, pytest,
# pybind11, ninja and setuptools (PYTHON names an interpreter other than python3). A step that fails
# is recorded, the later ones still run, and the exit status is 1.
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/results}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if ! nvidia-smi -L > /dev/null 2>&1; then
  echo "nvidia-smi finds no NVIDIA GPU on this machine, so there is nothing to measure."
  exit 0
fi
capability=$("$python" -c '
import torch
print(*torch.cuda.get_device_capability() if torch.cuda.is_available() else "", sep="")')
if [ -z "$capability" ]; then
  echo "There is an NVIDIA GPU, but torch finds no CUDA device, so there is nothing to measure."
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=""

# step NAME SECONDS COMMAND...: runs the command for so many seconds at most, and records it.
step() {
  local name=$1 limit=$2 started=$SECONDS status=0
  shift 2
  printf '\n== %s (at %d s)\n' "$name" "$started"
  timeout -k 5 "$limit" "$@" 2>&1 | tee "$work/$name.log" || status=$?
  if [ "$status" -ne 0 ]; then
    failed+=" $name"
    echo "$name failed with status $status (124: it took more than $limit s)" |
      tee -a "$work/$name.log"
  fi
  printf '%s\t%d\t%d\t%s\n' \
    "$name" "$status" $((SECONDS - started)) "$work/$name.log" >> "$work/steps"
}

build() {
  EGCNN_CUDA=1 EGCNN_CUDA_ARCHS=$capability \
    "$python" setup.py -q build_ext --inplace --build-temp "$work/build"
}

# The very kernels that were just built, in a program that gives each buffers of exactly its size.
build_sanitized() {
  local nvcc
  nvcc=$("$python" -c 'import build_backend; print(build_backend.find_nvcc())')
  "$nvcc" -std=c++17 -O1 -Icsrc -o "$work/kernels_main" \
    tests/cuda_on_cpu/kernels_main.cpp "$work"/build/cuda/*.cu.o
}

sanitize() {
  local tool=$1
  shift
  PATH=$PATH:/usr/local/cuda/bin compute-sanitizer --tool "$tool" --error-exitcode 1 \
    --print-limit 20 "$work/kernels_main" "$@"
}

export -f build build_sanitized sanitize
export python capability work
step build 120 bash -euc build
step tests 120 "$python" -m pytest tests/ops -k "cuda and not cuda_on_cpu" -p no:cacheprovider
step sanitizer-build 40 bash -euc build_sanitized
step memcheck 50 bash -euc 'sanitize memcheck'
step racecheck 50 bash -euc 'sanitize racecheck 5'  # every fifth case
step benchmarks $((470 - SECONDS)) "$python" -m benchmarks.gpu \
  --output "$output" --budget $((450 - SECONDS)) --steps "$work/steps"

if [ -n "$failed" ]; then
  echo "Failed:$failed"
  exit 1
fi
