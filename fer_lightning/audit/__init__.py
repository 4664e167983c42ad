"""What is wrong with a set of faces: copies, leaks, labels that contradict each other, images that show no face."""
