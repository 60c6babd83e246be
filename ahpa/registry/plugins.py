"""Outside packages announce a module in the entry-point group `ahpa.plugins`.

A plugin that fails to import causes a warning that names it, and nothing else breaks. Asking for a
component that is missing then shows the plugin's traceback, since the plugin may have brought it.
"""

import importlib.metadata
import traceback
import warnings

GROUP = "ahpa.plugins"

_failed: dict[str, str] = {}  # plugin name -> traceback
_loaded: dict[str, str] = {}  # plugin name -> module
_done = False


def load() -> None:
    """Import every installed plugin, once per process."""
    global _done
    if _done:
        return
    _done = True
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
            _loaded[entry.name] = entry.value
        except Exception as error:  # an outside module may raise anything
            _failed[entry.name] = traceback.format_exc()
            warnings.warn(
                f"the ahpa plugin {entry.name!r} ({entry.value}) could not be imported and is "
                f"ignored: {type(error).__name__}: {error}",
                stacklevel=2,
            )


def failures() -> str:
    """Return the tracebacks of failed plugins, for an error about a missing component."""
    return "".join(
        f"\n\nThe plugin {name!r} failed to import:\n{text}" for name, text in _failed.items()
    )


def loaded() -> dict[str, str]:
    """Return {plugin name: module} of the plugins that were imported."""
    return dict(_loaded)


def failed() -> dict[str, str]:
    """Return {plugin name: traceback} of the plugins that failed to import."""
    return dict(_failed)
