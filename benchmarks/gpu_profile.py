"""Launches every kernel of ours once at a training's size, for a profiler.

    ncu --profile-from-start off ... python -m benchmarks.gpu_profile

What warms up runs before the profiler is told to start.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.cases import (
    LAST,
    Case,
    consistency_case,
    edge_case,
    gate_case,
    magnitude_case,
    norm_case,
    sums_case,
    upsampled_case,
)
from benchmarks.cases import sizes as all_sizes
from benchmarks.measuring import make_work


def cases(device: torch.device, quick: bool) -> list[Case]:
    """One sample of each main case: a profiler saves and restores all memory for every pass."""
    s = all_sizes(device, quick)

    def one(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape[1:])

    return [
        edge_case(device, one(s.edges), "masks"),
        edge_case(device, one(s.edges), "labels"),
        magnitude_case(device, one(s.magnitude)),
        gate_case(device, one(s.gate), "voxel", torch.bfloat16),
        gate_case(device, one(s.gate), "channel", torch.bfloat16),
        gate_case(device, one(s.gate), "channel", torch.bfloat16, LAST),
        upsampled_case(device, one(s.gate), "voxel", torch.bfloat16),
        upsampled_case(device, one(s.gate), "channel", torch.bfloat16),
        consistency_case(device, one(s.consistency)),
        norm_case(device, one(s.norm), torch.bfloat16, LAST),
        sums_case(device, one(s.sums)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    runs = []
    for case in cases(device, options.quick):
        inputs = case.plan().draw()
        work = make_work(case.ours, [inputs], case.parts[-1])
        work(0)()
        runs.append((case.name, work))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
    for name, work in runs:
        print(name, flush=True)
        work(0)()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main()
