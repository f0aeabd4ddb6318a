"""Solvers for kernel matrices in tiles: on disk, in part or as a whole in memory."""
