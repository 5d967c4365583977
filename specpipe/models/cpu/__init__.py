"""The forward pass on CPUs: kernels that numba compiles."""
