"""Floor 1: routers weigh the levels of a prior into one target."""
