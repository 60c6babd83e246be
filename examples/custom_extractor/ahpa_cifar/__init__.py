"""CIFAR-10 classifiers for ahpa, as feature extractor and as prior. Importing this package
registers both, as its entry point does."""

from . import extractor, prior  # noqa: F401
