"""Pages and plots: they draw results, they compute nothing."""
