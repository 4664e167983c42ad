"""The scores of a classifier: the one list of them, and the functions that compute them. Needs numpy only."""
