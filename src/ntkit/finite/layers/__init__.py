"""Rules for the Jacobian of layers, one file for each kind."""
