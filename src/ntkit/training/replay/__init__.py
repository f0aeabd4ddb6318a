"""Recorded steps made again, in float64 and in the dtype of the training."""
