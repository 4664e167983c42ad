"""Several processes: launching ranks, collectives, signals, SLURM."""
