"""Accounts of predictions: the sweep over a run, and the tables that it fills."""
