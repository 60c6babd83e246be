"""Floor 2: the model, the loop, the hooks and the checkpoints. Imports no concrete component."""
