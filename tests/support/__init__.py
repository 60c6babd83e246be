"""Helpers of the tests: tiny runs in processes of their own, and components that misbehave on demand."""
