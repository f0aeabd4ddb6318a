"""Tables, estimators and measures of `make scores`."""
