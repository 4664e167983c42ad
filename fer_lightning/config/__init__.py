"""Typed config, its validation, and the objects that are built from it."""
