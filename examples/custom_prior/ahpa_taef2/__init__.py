"""TAEF2 for ahpa. Importing this package registers its components, as its entry point does."""

from . import prior, tokenizer  # noqa: F401
