"""The tangent kernel of a network as it is."""
