"""Which levels form which group: the forms of `groups`, on Stable Diffusion's 15 levels."""

import pytest

from ahpa.registry import ConfigError
from ahpa.registry.contracts import LevelSpec
from ahpa.routers import resolve_groups

SIZES = [(128, 1)] * 3 + [(128, 2)] + [(256, 2)] * 2 + [(256, 4)] + [(512, 4)] * 2 + [(512, 8)] * 6
SD = {f"l{index}": LevelSpec(*size) for index, size in enumerate(SIZES)}
WITH_TOKEN = {"patch": LevelSpec(768, 14), "cls": LevelSpec(768, 0)}


def span(first, last):
    return tuple(f"l{index}" for index in range(first, last + 1))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("4/4", {"mid": span(7, 10), "deep": span(11, 14)}),
        ("2/6", {"mid": span(7, 8), "deep": span(9, 14)}),
        ("6/2", {"mid": span(7, 12), "deep": span(13, 14)}),
        ("2/2/4", {"g1": span(7, 8), "g2": span(9, 10), "g3": span(11, 14)}),
        ("1", {"g1": span(14, 14)}),
        (8, {"g1": span(7, 14)}),
        ("resolution", {"mid": span(7, 8), "deep": span(9, 14)}),
        ("G1", {"g1": span(0, 3)}),
        ("G2", {"g2": span(4, 6)}),
        ("G3", {"mid": span(7, 10)}),
        ("G4", {"deep": span(11, 14)}),
        ("G3+G4", {"mid": span(7, 10), "deep": span(11, 14)}),
        (
            "G1+G2+G3+G4",
            {"g1": span(0, 3), "g2": span(4, 6), "mid": span(7, 10), "deep": span(11, 14)},
        ),
        ({"low": ["l0", 2], "high": [13, "l14"]}, {"low": ("l0", "l2"), "high": ("l13", "l14")}),
        ({"a": [7, 8], "b": [8, 9]}, {"a": span(7, 8), "b": span(8, 9)}),
    ],
)
def test_groups_of_the_sd_encoder(groups, expected):
    found = resolve_groups(groups, SD)
    assert found == expected
    assert list(found) == list(expected)


def test_paper_groups_are_all_levels_once():
    found = resolve_groups("G1+G2+G3+G4", SD)
    assert sum(found.values(), ()) == tuple(SD)


def test_vectors_do_not_count_as_levels_of_a_group():
    assert resolve_groups("1", WITH_TOKEN) == {"g1": ("patch",)}
    assert resolve_groups({"only": ["patch"]}, WITH_TOKEN) == {"only": ("patch",)}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("4-4", r"'4-4' is not a valid form.*Valid forms: '4/4'.*'resolution'.*G3\+G4.*name"),
        ("", "not a valid form"),
        (None, "not a valid form"),
        (["l1"], "not a valid form"),
        (True, "not a valid form"),
        (-4, "not a valid form"),
        ("4/0", "empty group"),
        ("12/4", "needs 16 levels, but the prior has 15: l0, l1"),
        ("8/4", r"different channels: l3 \(128\), l4 \(256\)"),
        ("G5", "there is no G5.*G1, G2, G3, G4"),
        ("G3+G3", "named twice"),
        ({}, "empty dict"),
        ({"mid": []}, "'mid' is empty"),
        ({"mid": "l3"}, "must be a list of levels"),
        ({"mid": 3}, "must be a list of levels"),
        ({3: ["l3"]}, "name must be a text"),
        ({"a.b": ["l3"]}, "without dots or slashes, got 'a.b'"),
        ({"a/b": ["l3"]}, "without dots or slashes, got 'a/b'"),
        ({"mid": ["l31"]}, r"no level 'l31'; did you mean .*'l3'.*Valid: l0"),
        ({"mid": [15]}, "no level 15; the prior has 15, counted from 0: 0 l0, 1 l1"),
        ({"mid": [-1]}, "no level -1"),
        ({"mid": [True]}, "no level True"),
        ({"mid": ["l3", 3]}, "names a level twice"),
        ({"mid": ["l3", "l4", "l7"]}, r"different channels: l3 \(128\), l4 \(256\), l7 \(512\)"),
    ],
)
def test_mistakes(groups, message):
    with pytest.raises(ConfigError, match=message):
        resolve_groups(groups, SD)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("G4", "defined for 15 levels, but the prior has 1: patch"),
        ("resolution", "at least two .*have 1: patch"),
        ({"only": ["patch", "cls"]}, "cls is a vector.*`prefix`"),
        ("4/4", "needs 8 levels, but the prior has 1"),
    ],
)
def test_mistakes_of_other_priors(groups, message):
    with pytest.raises(ConfigError, match=message):
        resolve_groups(groups, WITH_TOKEN)


def test_attention_logits_belong_to_no_group():
    levels = {**WITH_TOKEN, "attention": LevelSpec(12, 16, attention=True)}
    assert resolve_groups("1", levels) == {"g1": ("patch",)}
    with pytest.raises(ConfigError, match="attention holds attention logits.*AttentionAlignment"):
        resolve_groups({"only": ["attention"]}, levels)


def test_a_groups_name_may_hold_the_word_loss():
    assert resolve_groups({"loss_a": ["l3"]}, SD) == {"loss_a": ("l3",)}
