// Stands in for the header that setup.py writes.
#pragma once

#define EGCNN_WITH_CUDA 1
#define EGCNN_COMPILER "stand-in"
#define EGCNN_CUDA_TOOLKIT "stand-in"
#define EGCNN_CUDA_ARCHITECTURES ""
#define EGCNN_CUDA_NOTE ""
