"""One training job: the LightningModule, losses, optimizers, metrics, callbacks."""
