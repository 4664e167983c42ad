"""From files to batches: sources, protocols, balance, augmentation, loader."""
