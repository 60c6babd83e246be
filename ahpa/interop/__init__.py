"""Floor 3: weights in and out. Published checkpoints' layouts, diffusers' pipeline folders, runs as folders to share."""
