"""Edge-Gated CNNs for volumetric semantic segmentation of medical images.

Hatamizadeh, Terzopoulos, Myronenko (2020). Import from the submodules, for example ``egcnn.ops``
for the fused operators or ``egcnn.nn`` for the networks; this file imports nothing, so that
``import egcnn`` stays instant.
"""

__version__ = "0.1.0"
