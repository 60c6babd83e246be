"""Assembly, the training loop, checkpoints, logging, and the adapter to mmengine's Runner."""
