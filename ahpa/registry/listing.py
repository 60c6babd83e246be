"""List every registered component: its name, where it comes from, and one line about it."""

import inspect
import sys
import warnings
from collections.abc import Sequence

from . import ALL, nearest, plugins


def main(kinds: Sequence[str]) -> int:
    """Print the components of the named registries, or of all.

    Args:
        kinds: Names of registries such as "routers", in any case.

    Returns:
        Exit code: 2 for an unknown registry, else 0.
    """
    wanted = {kind.upper() for kind in kinds}
    for kind in sorted(wanted - set(ALL)):
        print(f"no registry is called {kind!r}{nearest(kind, ALL)}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # failed plugins are listed below
        plugins.load()
        for kind, registry in ALL.items():
            registry.import_from_location()
            if (wanted and kind not in wanted) or not registry.module_dict:
                continue
            print(f"{kind} ({registry.name})")
            for name, component in sorted(registry.module_dict.items()):
                summary = (inspect.getdoc(component) or "").split("\n")[0]
                print(f"  {name:24s} {component.__module__:32s} {summary}")
    for name, text in plugins.failed().items():
        print(f"plugin {name!r} could not be imported:\n{text}", file=sys.stderr)
    return 0
