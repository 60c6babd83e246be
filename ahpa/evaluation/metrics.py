"""Metrics by the names that people type: "fid", "precision", "fd:tiny-vit"."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import METRICS, ConfigError, build, nearest
from ..registry.contracts import Metric


def figures_of_metrics() -> dict[str, str]:
    """Return {figure: registered metric} of all metrics that need no options."""
    found: dict[str, str] = {}
    for name in METRICS.names():
        try:
            metric: Metric = build(METRICS, {"type": name})
        except ConfigError:
            continue  # it needs an extractor, so its figures have no name yet
        found |= {figure: name for figure in metric.figures}
    return found


def build_metrics(names: Sequence[str | Mapping[str, Any]]) -> dict[str, Metric]:
    """Build metrics by name; no weights are read.

    Args:
        names: Names of metrics or of their figures ("precision" is one of "precision-recall"),
            with another extractor behind a colon ("fd:tiny-vit"); or configs, dict(type=...).

    Returns:
        {name: metric}, in this order, each metric once.

    Raises:
        ConfigError: For an unknown name, with the nearest valid ones, or a wrong option.
    """
    figures: dict[str, str] = {}
    found: dict[str, Metric] = {}
    for item in names:
        if isinstance(item, Mapping):
            built: Metric = build(METRICS, item, where="metrics")
            found.setdefault(metric_name(str(item["type"]), built), built)
            continue
        head, colon, extractor = str(item).strip().partition(":")
        if head not in METRICS.names():
            figures = figures or figures_of_metrics()
            if head not in figures:
                valid = {*METRICS.names(), *figures}
                raise ConfigError(f"metrics: no metric is called {head!r}{nearest(head, valid)}")
            head = figures[head]
        if colon and not extractor:
            raise ConfigError(f"metrics: {item!r} names no extractor behind the colon.")
        if head == "fd" and not colon:
            raise ConfigError("metrics: 'fd' needs an extractor behind a colon: 'fd:tiny-vit'.")
        config = {"type": head, **({"extractor": extractor} if colon else {})}
        name = f"{head}:{extractor}" if colon else head
        if name not in found:
            found[name] = build(METRICS, config, where=f"metrics.{name}")
    if not found:
        raise ConfigError("metrics: must name at least one metric.")
    return found


def metric_name(registered: str, metric: Metric) -> str:
    """Return a config's name: that of its only figure, else the registered one."""
    figures = list(metric.figures)
    return figures[0] if len(figures) == 1 else registered
