"""TAEF2 for ahpa. Importing this package registers its components; the entry point in pyproject.toml does so by itself."""

from . import autoencoder, prior  # noqa: F401
