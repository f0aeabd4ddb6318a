"""Recorded steps replayed, in float64 and in the dtype of the training."""
