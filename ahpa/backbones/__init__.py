"""Floor 1: the diffusion transformers and what conditions them."""
