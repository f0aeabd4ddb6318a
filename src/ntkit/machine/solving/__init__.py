"""Losses and solvers beneath the estimators."""
