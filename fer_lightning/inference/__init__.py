"""Scoring and predicting with trained networks."""
