"""Faults of a data set: duplicates, blank images, cleaning."""
