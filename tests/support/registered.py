"""The components that ahpa ships: other test modules register components of their own."""

from ahpa.registry import ComponentRegistry


def shipped(registry: ComponentRegistry) -> list[str]:
    """List the names of ahpa's own components of a registry."""
    return [name for name in registry.names() if registry.get(name).__module__.startswith("ahpa.")]
