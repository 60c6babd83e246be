"""Weights in and out: published layouts, diffusers' pipeline folders, and runs to share."""
