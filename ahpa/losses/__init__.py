"""Floor 1: flow and pairwise losses, projectors, schedules and the alignment that joins them."""
