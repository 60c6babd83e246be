"""Paths between data and noise, distributions of the training time, and the noising of a batch."""

from . import discrete, flows, paths, timesteps, token_time

__all__ = ["discrete", "flows", "paths", "timesteps", "token_time"]
