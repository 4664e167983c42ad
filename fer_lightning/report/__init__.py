"""The results of a run for people: tables, figures, one HTML page, trackers."""
