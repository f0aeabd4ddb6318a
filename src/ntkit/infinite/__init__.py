"""The kernels of the infinite-width limit of a network, read off its graph."""
