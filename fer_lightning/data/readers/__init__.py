"""From files to one table of faces."""
