#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth, without a network: what comes first is
# safe when the time runs out.
#
#   benchmarks/gpu.sh [--part first|second] [--device cpu] [--quick] [OUTPUT_DIR]
#
#   first   in 330 s: builds the kernels for this GPU, compares one value an operator with the CPU,
#           times our cases, profiles the kernels, times a training step
#   second  in 480 s: builds if there is no build, times the peers and the compiled training step,
#           runs all CUDA tests, looks for memory errors and races
#
# Without --part both run. Needs nvcc, and of Python's packages torch with CUDA, numpy, scipy,
# pytest, pybind11, ninja and setuptools (PYTHON names an interpreter other than python3); ncu and
# compute-sanitizer where they are there. Each result is in OUTPUT_DIR as soon as it is known, in
# seven files at most. A step that fails is recorded, the later ones still run, and the exit
# status is 1. `--device cpu --quick` tries the script itself on a machine without a GPU: what only
# a GPU's tools can do is printed and not done, and no time means anything.
set -euo pipefail
part=both device=cuda quick="" output=""
while [ $# -gt 0 ]; do
  case $1 in
    --part) part=$2 && shift ;;
    --device) device=$2 && shift ;;
    --quick) quick=--quick ;;
    -*) echo "gpu.sh: $1 is no option; expected --part, --device or --quick" && exit 2 ;;
    *) output=$1 ;;
  esac
  shift
done
case $part in
  both | first | second) ;;
  *) echo "gpu.sh: --part is $part; expected first or second" && exit 2 ;;
esac
output=$(realpath -m "${output:-$(dirname "$0")/results/gpu}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$device" = cpu ] && ! compgen -G "egcnn/_C*" > /dev/null; then
  # The installed egcnn is tried: that of the checkout, which Python would find first, has no kernels.
  mkdir "$work/checkout"
  ln -s "$PWD"/{benchmarks,csrc,tests,build_backend.py,setup.py,pyproject.toml} "$work/checkout"
  cd "$work/checkout"
fi
export PYTHONPATH=${PYTHONPATH:-$PWD}
capability=""

if [ "$device" = cuda ]; then
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
  export PYTHONPATH=$PWD:$PYTHONPATH
fi

mkdir -p "$output"
[ $part = second ] || rm -f "$output"/{measurements.jsonl,log.txt,tests.txt}
failed=""

# step NAME SECONDS COMMAND...: runs the command for at most SECONDS, and records it.
step() {
  local name=$1 limit=$2 started=$SECONDS status=0
  shift 2
  printf '\n== %s (at %d s)\n' "$name" "$started" | tee -a "$output/log.txt"
  [ "$device" = cuda ] || limit=900
  # In a shell, for `timeout` runs no function.
  timeout -k 5 "$limit" bash -euo pipefail -c '"$@"' "$name" "$@" 2>&1 |
    tee "$work/$name.log" | tee -a "$output/log.txt" || status=$?
  if [ "$status" -ne 0 ]; then
    failed+=" $name"
    echo "$name failed with status $status (124: it took more than $limit s)" |
      tee -a "$work/$name.log" "$output/log.txt"
  fi
  printf '%s\t%d\t%d\t%s\n' \
    "$name" "$status" $((SECONDS - started)) "$work/$name.log" >> "$work/steps"
}

# on_gpu COMMAND...: only prints it in a dry run.
on_gpu() {
  if [ "$device" = cuda ]; then "$@"; else echo "on a GPU: $*"; fi
}

# Seen from a folder without pyproject.toml, whose licence field an older setuptools refuses.
build() {
  mkdir -p "$work/source"
  ln -sf "$PWD"/{setup.py,build_backend.py,csrc,egcnn} "$work/source"
  cd "$work/source"
  EGCNN_CUDA=1 EGCNN_CUDA_ARCHS=$capability on_gpu \
    "$python" setup.py -q build_ext --inplace --build-temp "$build"
}

measure() {
  "$python" -m benchmarks.gpu --device "$device" ${quick:+"$quick"} --output "$output" \
    --steps "$work/steps" "$@"
}

# Our kernels, once each, in one report.
profile() {
  local program=("$python" -m benchmarks.gpu_profile --device "$device" ${quick:+"$quick"})
  if [ "$device" != cuda ]; then
    "${program[@]}"
    return
  fi
  ncu --clock-control none --profile-from-start off --kernel-name-base demangled \
    --kernel-name regex:egcnn --section SpeedOfLight --section WarpStateStats \
    --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
    --force-overwrite --export "$output/kernels" "${program[@]}"
  ncu --import "$output/kernels.ncu-rep" --page details > "$output/kernels.txt"
}

# A process a file: a fault in one does not fail the tests of the others.
tests() {
  local status=0
  for file in tests/ops/test_*.py; do
    on_gpu "$python" -m pytest "$file" -k "cuda and not cuda_on_cpu" --maxfail 3 -rfE \
      -p no:cacheprovider 2>&1 | tee -a "$output/tests.txt" || [ $? -eq 5 ] || status=1
  done
  return $status
}

# The kernels that were just built, in a program that gives each buffers of exactly its size.
sanitize() {
  local nvcc program=$build/kernels_main
  nvcc=$("$python" -c 'import build_backend; print(build_backend.find_nvcc())')
  on_gpu "$nvcc" -std=c++17 -O1 -Icsrc -o "$program" \
    tests/cuda_on_cpu/kernels_main.cpp "$build"/cuda/{,*/}*.cu.o
  PATH=$PATH:/usr/local/cuda/bin
  on_gpu compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 "$program" 7
}

build=$PWD/build/gpu
export -f build measure profile tests sanitize on_gpu
export python capability device quick output work build

"$python" -c '
import importlib.metadata as m
names = "torch", "numpy", "scipy", "pytest", "pybind11", "ninja", "setuptools"
print("Python packages:", *(f"{name} {m.version(name)}" for name in names))'

step build 120 build
if [ $part != second ]; then
  step values 60 "$python" -m pytest tests/ops/test_cuda.py -k agrees_with_the_cpu -rs \
    -p no:cacheprovider
  step cases 130 measure cases
  step profile 100 profile
  step training $((SECONDS < 270 ? 330 - SECONDS : 60)) measure training
fi
if [ $part != first ]; then
  [ $part = second ] || SECONDS=30
  budget=$((250 - SECONDS))
  [ "$device" = cuda ] || budget=900
  step peers $((budget + 20)) measure peers --budget "$budget"
  step compiled-training 100 measure compiled-training
  step tests 120 tests
  step memcheck 50 sanitize memcheck
  step racecheck 50 sanitize racecheck
fi
measure report || failed+=" report"

if [ -n "$failed" ]; then
  echo "Failed:$failed"
  exit 1
fi
