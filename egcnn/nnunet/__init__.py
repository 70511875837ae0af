"""A trainer for nnU-Net, which finds it in the folder that ``nnUNet_extTrainer`` names::

export nnUNet_extTrainer=$(python -c "import egcnn.nnunet; print(egcnn.nnunet.FOLDER)")
nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerEGCNN
"""

from pathlib import Path

#: Where the trainer lies. nnU-Net imports every module of this folder, under its name alone.
FOLDER = Path(__file__).resolve().parent / "trainers"
