"""Samples as users have them, as the vectors of numbers that a kernel takes."""
