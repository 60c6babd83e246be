"""ahpa: a workbench for representation alignment in diffusion transformers.

Importing it is cheap: torch, diffusers and the rest load when a component that needs them is built.
"""

__version__ = "0.1.0"
