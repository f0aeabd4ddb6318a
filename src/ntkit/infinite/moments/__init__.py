"""Means, covariances and tangent kernels of the vectors of a tensor program."""
