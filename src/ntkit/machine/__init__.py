"""Learning with a kernel, and the doors to scikit-learn and GPyTorch."""
