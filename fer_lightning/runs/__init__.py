"""The run folder: checkpoints, resuming, results, sweeps."""
