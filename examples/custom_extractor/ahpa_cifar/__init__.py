"""CIFAR-10 classifiers for ahpa. Importing this package registers its component, as its entry point
does."""

from . import extractor  # noqa: F401
