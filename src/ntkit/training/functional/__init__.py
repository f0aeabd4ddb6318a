"""The network as a function of flat weights, and its Jacobian by structure."""
