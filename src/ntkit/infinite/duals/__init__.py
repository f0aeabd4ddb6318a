"""E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of functions of one variable, u and v jointly Gaussian."""
