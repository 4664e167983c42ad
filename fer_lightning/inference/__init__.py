"""Scoring and predicting with a trained network."""
