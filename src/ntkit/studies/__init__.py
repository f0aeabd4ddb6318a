"""The demo and the papers' experiments, one file each: Config, run(config) -> Result, figure(result)."""
