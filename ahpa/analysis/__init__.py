"""What a run has learnt, what a model costs, and how good its samples are: the routers' policy,
parameters and GMACs, samples for evaluation, evaluation during training."""

from . import evaluation_hook, policy  # noqa: F401
