// How the edge gate cuts a call into blocks, and its scratch: for the kernels and for the size
// queries of dispatch.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

// Work goes in blocks of voxels, with a row of each for every input: e's channels and m's.
struct EdgeGatePlan {
  int64_t inputs;
  int64_t block;    // voxels of a block, at most; a multiple of 64
  int64_t blocks;   // of a sample
  int64_t jobs;     // blocks of all samples
  int64_t pitch;    // elements from row to row; a power of two would crowd few sets of the caches
  int64_t sums;     // offset of the sums' rows in scratch
  int64_t staging;  // offset of room for 16 voxels and a line of scratch
  int64_t scratch;  // elements a thread
  int64_t weights;  // elements of the weights and biases of all gates
  int64_t chunks;   // of jobs, each with its own sums of the weights' gradients

  EdgeGatePlan(const Size& size, int64_t main_channels, int64_t gates, bool backward) {
    const int64_t ce = size.channels, cm = main_channels, voxels = size.voxels();
    inputs = ce + cm;
    // One gate a voxel: of this block. One a channel: of the next block, too.
    const int64_t loaded = (inputs + (backward ? ce : 0)) * (gates == 1 ? 1 : 2);
    const int64_t rows = loaded + (gates > 2 ? gates : 2);
    // What the second-level cache holds, beside the next block where that has no rows here, but
    // enough blocks to share out, unless they get so short that the work on rows is not worth
    // their starting.
    const int64_t fit = (int64_t(gates == 1 ? 96 : 128) << 10) / rows;
    const int64_t part = (size.batch * voxels + 31) / 32;
    const int64_t least = gates == 1 ? 256 : 64, enough = part < least ? least : part;
    const int64_t wanted = fit < enough ? fit : enough;
    block = wanted > 1024 ? 1024 : wanted < 1 ? 64 : (wanted + 63) / 64 * 64;
    blocks = (voxels + block - 1) / block;
    jobs = size.batch * blocks;
    pitch = block + 16;
    sums = loaded * pitch;
    staging = rows * pitch;
    scratch = staging + 16 * ((ce > cm ? ce : cm) + 2);
    weights = (gates * (inputs + 1) + 15) / 16 * 16;
    // Within 8 MB where that is possible.
    const int64_t few = (int64_t(1) << 20) / (weights > 0 ? weights : 1);
    const int64_t most = few < 16 ? 16 : few > 128 ? 128 : few;
    chunks = jobs < most ? jobs : most;
  }
};

}  // namespace egcnn
