"""Faults of a data set: duplicates, leaks, contradicting labels, images without a face."""
