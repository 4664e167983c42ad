"""Photos, videos and cameras in; tables, tracks and annotated copies out."""
