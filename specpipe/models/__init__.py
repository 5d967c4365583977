"""Models: files, weights, caches and the forward pass."""
