"""Floor 1: where targets come from, and the autoencoders that make latents."""
