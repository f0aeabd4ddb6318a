"""Kernel matrices as tiles in a folder."""
