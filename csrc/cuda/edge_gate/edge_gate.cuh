// The two forms of the edge gate, each in its own unit.
#pragma once

#include "../../ops.h"

namespace egcnn::cuda {

// One attention value per voxel. Forward needs no workspace.
void voxel_gate_launch(const EdgeGate& p);
size_t voxel_gate_backward_workspace(const EdgeGateBackward& p);
void voxel_gate_backward_launch(const EdgeGateBackward& p);

// One attention value per channel of e.
size_t channel_gate_workspace(const EdgeGate& p);
void channel_gate_launch(const EdgeGate& p);
size_t channel_gate_backward_workspace(const EdgeGateBackward& p);
void channel_gate_backward_launch(const EdgeGateBackward& p);

}  // namespace egcnn::cuda
