"""Classes as targets, and scores as probabilities."""
