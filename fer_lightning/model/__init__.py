"""The network, its loss, optimizer and metrics."""
