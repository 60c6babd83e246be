"""Floor 2: the model, the loop, the hooks and the checkpoints. Imports no concrete component."""

from . import denoiser, hooks, loop, optim, progress, runner, visualizer  # noqa: F401
