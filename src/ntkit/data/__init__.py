"""Data sets, small and real, split and seeded."""
