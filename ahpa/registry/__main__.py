"""`python -m ahpa.registry [KIND ...]`: every registered component, where it comes from, one line about each."""

import inspect
import sys
import warnings

from . import ALL, nearest, plugins


def main(kinds: list[str]) -> int:
    for kind in kinds:
        if kind.upper() not in ALL:
            print(f"no registry is called {kind!r}{nearest(kind.upper(), ALL)}", file=sys.stderr)
            return 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        plugins.load()
        for name, registry in ALL.items():
            if kinds and name not in {kind.upper() for kind in kinds}:
                continue
            registry.import_from_location()
            if not registry.module_dict:
                continue
            print(f"{name} ({registry.name})")
            for key, component in sorted(registry.module_dict.items()):
                first = (inspect.getdoc(component) or "").split("\n")[0]
                print(f"  {key:24s} {component.__module__:32s} {first}")
    for name in plugins.failed():
        print(f"plugin {name!r} could not be imported:\n{plugins.failed()[name]}", file=sys.stderr)
    del caught
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
