"""Third parties' components: installed packages announce a module in the entry-point group `ahpa.plugins`.

A plugin that fails to import is a warning that names it and nothing else; asking for a component that is not there
then shows its original traceback, since that plugin may have been the one to bring it.
"""

import importlib.metadata
import traceback
import warnings

GROUP = "ahpa.plugins"
_failed: dict[str, str] = {}  # plugin name -> its traceback
_loaded: dict[str, str] = {}  # plugin name -> the module that it names
_done = False


def load() -> None:
    """Imports every installed plugin once in this process."""
    global _done
    if _done:
        return
    _done = True
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
            _loaded[entry.name] = entry.value
        except Exception as error:  # a stranger's module may raise anything
            _failed[entry.name] = traceback.format_exc()
            warnings.warn(
                f"the ahpa plugin {entry.name!r} ({entry.value}) could not be imported and is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def failures() -> str:
    """The tracebacks of the plugins that failed, to be put below an error about a missing component; '' if none."""
    return "".join(f"\n\nThe plugin {name!r} failed to import:\n{text}" for name, text in _failed.items())


def loaded() -> dict[str, str]:
    """Plugin name -> module, of those that were imported."""
    return dict(_loaded)


def failed() -> dict[str, str]:
    """Plugin name -> traceback, of those that were not."""
    return dict(_failed)
