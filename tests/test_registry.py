"""Registries: strict names and options, derived sizes, plugins that fail, the listing; every component is documented."""

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from ahpa.registry import ALL, ConfigError, UserError, build, check, plugins
from ahpa.registry.registry import ComponentRegistry

ROOT = Path(__file__).resolve().parents[1]
THINGS = ComponentRegistry("thing", scope="ahpa", locations=[])


@THINGS.register_module()
class Base:
    """A thing."""

    def __init__(self, *, size, colour="red"):
        if size < 0:
            raise ValueError("size: must not be negative.")
        self.size, self.colour = size, colour


@THINGS.register_module()
class Child(Base):
    """A thing that passes options on."""

    def __init__(self, *, weight=1, **options):
        super().__init__(**options)
        self.weight = weight


@pytest.mark.parametrize(
    "cfg, words",
    [
        (dict(type="Bas", size=1), ["model.thing.type", "'Bas'", "did you mean 'Base'"]),
        (dict(type="os.system", size=1), ["os.system"]),
        (dict(type="ahpa.registry.errors.nearest", wrong=1), ["no thing is called"]),
        (dict(type="Base", szie=1), ["model.thing", "'szie'", "did you mean 'size'"]),
        (dict(type="Child", size=1, color=2), ["Child", "did you mean 'colour'"]),
        (dict(type="Base"), ["Base needs the option 'size'"]),
        (dict(type="Base", size=-1), ["model.thing: size: must not be negative"]),
        (dict(size=1), ["a dict with a 'type'"]),
        ("Base", ["a dict with a 'type'"]),
        (None, ["a dict with a 'type'"]),
        (dict(type=3), ["must be a name"]),
    ],
    ids=str,
)
def test_mistakes(cfg, words):
    with pytest.raises(ConfigError) as caught:
        build(THINGS, cfg, where="model.thing")
    for word in words:
        assert word in str(caught.value)


def test_builds_with_options_of_the_base_and_derived_sizes():
    child = build(THINGS, dict(type="Child", colour="blue", weight=2), size=3)
    assert (child.size, child.colour, child.weight) == (3, "blue", 2)
    with pytest.raises(ConfigError, match="derived"):
        build(THINGS, dict(type="Child", size=1), size=3)
    assert build(THINGS, child) is child


def test_check_builds_nothing():
    assert check(THINGS, dict(type="Base", size=-5)) is Base


def test_a_config_error_is_a_value_error_and_a_user_error():
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, UserError)


class FakeEntry:
    name, value = "broken", "broken_plugin"

    def load(self):
        raise ImportError("libmissing.so is not there")


def test_a_plugin_that_fails_is_named_and_everything_else_works(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [FakeEntry()] if group == "ahpa.plugins" else []
    )
    for name, value in (("_failed", {}), ("_loaded", {}), ("_done", False)):
        monkeypatch.setattr(plugins, name, value)
    with pytest.warns(UserWarning, match="'broken'.*libmissing.so"):
        plugins.load()
    assert build(THINGS, dict(type="Base", size=1)).size == 1
    with pytest.raises(ConfigError) as caught:
        build(THINGS, dict(type="FromBroken", size=1))
    assert "Traceback" in str(caught.value) and "libmissing.so is not there" in str(caught.value)


def components(own=False):
    for kind, registry in ALL.items():
        if own and registry.parent is not None:
            continue
        registry.import_from_location()
        for name, component in registry.module_dict.items():
            if component.__module__.startswith("ahpa."):
                yield pytest.param(component, id=f"{kind}.{name}")


def own_classes():
    """Classes of the kinds that are ahpa's own: mmengine fixes the signatures of the other kinds, and functions such as
    a sampler take what they work on by position."""
    return [p for p in components(own=True) if inspect.isclass(p.values[0])]


@pytest.mark.parametrize("component", own_classes())
def test_constructors_take_keywords_only(component):
    listed = list(inspect.signature(component.__init__).parameters.values())[1:]  # without `self`
    assert [p.name for p in listed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)] == []


def test_the_constructors_were_found():
    assert {"ROUTERS.LUTRouter", "PRIORS.VAETaps", "BACKBONES.SiT"} <= {param.id for param in own_classes()}


@pytest.mark.parametrize("component", components())
def test_every_component_is_documented(component):
    assert (component.__doc__ or "").strip().endswith((".", ")")) or "\n" in (component.__doc__ or "")
    first = inspect.getdoc(component).split("\n")[0]
    assert len(first) > 10, "its first line is shown by python -m ahpa.registry"


def test_the_listing():
    done = subprocess.run([sys.executable, "-m", "ahpa.registry"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for word in ("ROUTERS (router)", "LUTRouter", "ahpa.routers.learned", "VAETaps", "SiT", "A lookup table"):
        assert word in done.stdout
    some = subprocess.run([sys.executable, "-m", "ahpa.registry", "losses"], capture_output=True, text=True, cwd=ROOT)
    assert "CosineLoss" in some.stdout and "SiT" not in some.stdout
    wrong = subprocess.run([sys.executable, "-m", "ahpa.registry", "loses"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and "LOSSES" in wrong.stderr
