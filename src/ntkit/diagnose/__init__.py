"""Questions asked of any kernel."""
