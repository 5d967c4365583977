"""The forward pass on GPUs, in torch."""
