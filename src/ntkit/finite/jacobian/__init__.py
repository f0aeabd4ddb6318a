"""The Jacobian of a network in its weights, kept as factors: rules, uses of weights, passes, proof."""
