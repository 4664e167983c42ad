"""Networks: backbones, heads and the preprocessing of their input."""
