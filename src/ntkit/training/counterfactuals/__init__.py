"""What would have happened: a recorded run trained again, and the derivatives of its end by its samples."""
