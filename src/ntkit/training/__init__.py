"""A training run recorded, and its predictions accounted for as sums over training samples."""
