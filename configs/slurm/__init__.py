"""Batch files for SLURM: ``sbatch configs/slurm/pretrain.sbatch``, see docs/slurm.md."""
