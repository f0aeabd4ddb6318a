"""Estimators on stored kernel matrices: which solver, why, how long, and what it finds."""
