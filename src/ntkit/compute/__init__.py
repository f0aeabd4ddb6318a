"""Where and how big matrices are built: plans of chunks under a memory budget."""
