"""Many finished runs, compared on the same test images."""
