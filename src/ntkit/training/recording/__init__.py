"""A training loop watched: its batches, gradients and steps, written as they are made."""
