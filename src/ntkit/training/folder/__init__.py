"""What is on disk: a run's manifest, its log, and the steps in it."""
