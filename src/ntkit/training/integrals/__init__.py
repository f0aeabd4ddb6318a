"""Integrals of gradients along the steps of training."""
