"""What changes training images: augmentation, mixing, resampling."""
