"""Registries: strict names and options, derived sizes, plugins that fail, the listing; every
component is documented, and every kind has a contract and a check."""

import importlib.metadata
import inspect
import subprocess
import sys
from abc import ABC

import mmengine.hooks
import mmengine.visualization
import pytest
import torch
from support.runs import ROOT, environment

import ahpa.testing
from ahpa.cli.main import main as ahpa_command
from ahpa.registry import ALL, ConfigError, UserError, build, check, contracts, plugins
from ahpa.registry.listing import main as listing
from ahpa.registry.registry import ComponentRegistry

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
        (dict(type="Base", size=-1), ["model.thing.size: must not be negative"]),
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
    with pytest.raises(ConfigError, match="follows from the other parts"):
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
    entries = {"ahpa.plugins": [FakeEntry()]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries.get(group, []))
    for name, value in (("_failed", {}), ("_loaded", {}), ("_done", False)):
        monkeypatch.setattr(plugins, name, value)
    with pytest.warns(UserWarning, match="'broken'.*libmissing.so"):
        plugins.load()
    assert build(THINGS, dict(type="Base", size=1)).size == 1
    with pytest.raises(ConfigError) as caught:
        build(THINGS, dict(type="FromBroken", size=1))
    assert "Traceback" in str(caught.value)
    assert "libmissing.so is not there" in str(caught.value)


# ---- our own components -------------------------------------------------------------------------

OWN = {kind: registry for kind, registry in ALL.items() if registry.parent is None}
CONTRACTS = {  # registry -> its contract in contracts.py, and its check in ahpa.testing
    "ALIGNMENTS": ("Alignment", "check_alignment"),
    "BACKBONES": ("Backbone", "check_backbone"),
    "CONDITIONERS": ("Conditioner", "check_conditioner"),
    "DATASETS": ("Dataset", "check_dataset"),
    "EXTRACTORS": ("FeatureExtractor", "check_extractor"),
    "FLOWS": ("Flow", "check_flow"),
    "FLOW_LOSSES": ("FlowLoss", "check_flow_loss"),
    "GUIDANCES": ("Guidance", "check_guidance"),
    "METRICS": ("Metric", "check_metric"),
    "PAIR_LOSSES": ("PairLoss", "check_pair_loss"),
    "PATHS": ("Path", "check_path"),
    "PRIORS": ("Prior", "check_prior"),
    "PROJECTORS": ("Projector", "check_projector"),
    "REGULARISERS": ("Regulariser", "check_regulariser"),
    "ROUTERS": ("Router", "check_router"),
    "SAMPLERS": ("Sampler", "check_sampler"),
    "SCHEDULES": ("Schedule", "check_schedule"),
    "TEXT_ENCODERS": ("TextEncoder", "check_text_encoder"),
    "TIMESTEPS": ("Timesteps", "check_timesteps"),
    "TIME_ENCODINGS": ("TimeEncoding", "check_time_encoding"),
    "TOKENIZERS": ("Tokenizer", "check_tokenizer"),
    "TOKEN_ROUTINGS": ("TokenRouting", "check_token_routing"),
}
OF_MMENGINE = {  # its contract is mmengine's or torch's
    "HOOKS": mmengine.hooks.Hook,
    "OPTIMIZERS": torch.optim.Optimizer,
    "PARAM_SCHEDULERS": object,
    "VISBACKENDS": mmengine.visualization.BaseVisBackend,
    "VISUALIZERS": mmengine.visualization.Visualizer,
}


def components(registries):
    found = []
    for kind, registry in registries.items():
        registry.import_from_location()
        for name, component in registry.module_dict.items():
            if component.__module__.startswith("ahpa."):
                found.append(pytest.param(kind, component, id=f"{kind}.{name}"))
    return found


def test_every_registry_has_a_contract_and_a_check():
    assert set(CONTRACTS) == set(OWN)
    assert set(OF_MMENGINE) == set(ALL) - set(OWN)
    for contract, function in CONTRACTS.values():
        base = vars(contracts)[contract]
        assert issubclass(base, ABC) and inspect.isabstract(base), contract
        assert function in ahpa.testing.__all__ and callable(vars(ahpa.testing)[function])


@pytest.mark.parametrize("kind", OWN)
def test_every_registry_holds_components(kind):
    assert len(components({kind: OWN[kind]})) >= 1


@pytest.mark.parametrize(("kind", "component"), components(OWN))
def test_every_component_keeps_the_contract_of_its_kind(kind, component):
    contract = vars(contracts)[CONTRACTS[kind][0]]
    assert inspect.isclass(component) and issubclass(component, contract)
    assert not inspect.isabstract(component), "it leaves a method of the contract out"


OTHERS = {kind: registry for kind, registry in ALL.items() if kind not in OWN}


@pytest.mark.parametrize(("kind", "component"), components(OTHERS))
def test_hooks_and_visualizers_are_mmengines(kind, component):
    assert issubclass(component, OF_MMENGINE[kind])


@pytest.mark.parametrize(("kind", "component"), components(OWN))
def test_constructors_take_keywords_only(kind, component):
    listed = list(inspect.signature(component.__init__).parameters.values())[1:]  # without `self`
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert [p.name for p in listed if p.kind in by_position] == []


@pytest.mark.parametrize(("kind", "component"), components(OWN))
def test_constructors_spell_out_their_options(kind, component):
    """A misspelled option is found by name, so no class takes any name."""
    if component.__init__ is object.__init__:
        return  # it has none
    listed = list(inspect.signature(component.__init__).parameters.values())[1:]
    assert [p.name for p in listed if p.kind is inspect.Parameter.VAR_KEYWORD] == []


def test_the_components_were_found():
    found = {param.id for param in components(ALL)}
    some = {"ROUTERS.LUTRouter", "PRIORS.VAETaps", "BACKBONES.SiT", "HOOKS.SampleGrids"}
    assert some <= found and len(found) >= 60


@pytest.mark.parametrize(("kind", "component"), components(ALL))
def test_every_component_is_documented(kind, component):
    text = (component.__doc__ or "").strip()
    assert text.endswith((".", ")")) or "\n" in text
    first = inspect.getdoc(component).split("\n")[0]
    assert len(first) > 10, "its first line is shown by ahpa list"


# ---- the listing --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["-m ahpa.registry", "-m ahpa.cli.main list"])
def test_the_listing_of_the_real_commands(command):
    whole = [sys.executable, *command.split()]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    words = ("ROUTERS (router)", "LUTRouter", "ahpa.routers.learned", "VAETaps", "SiT")
    assert all(word in done.stdout for word in (*words, "A lookup table"))


@pytest.mark.parametrize("main", [listing, lambda kinds: ahpa_command(["list", *kinds])])
def test_the_listing(main, capsys):
    assert main([]) == 0
    whole = capsys.readouterr().out
    assert all(f"{kind} ({registry.name})" in whole for kind, registry in OWN.items())
    assert all(param.id.split(".")[1] in whole for param in components(ALL))
    assert main(["pair_losses"]) == 0
    some = capsys.readouterr().out
    assert "CosineLoss" in some and "SiT" not in some
    assert main(["pair_loses"]) == 2
    assert "PAIR_LOSSES" in capsys.readouterr().err
