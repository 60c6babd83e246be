"""Helpers of the tests: tiny runs and models, and components that misbehave on demand."""
