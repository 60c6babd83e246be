"""The list of known bugs (`make mutants`) still applies to the code: each line is there once."""

import importlib.util
import sys

import pytest
from support.runs import ROOT

TOOL = ROOT / "tools" / "mutant_list.py"
spec = importlib.util.spec_from_file_location("mutant_list", TOOL)
mutant_list = sys.modules["mutant_list"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutant_list)
MUTANTS = mutant_list.MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_names_its_tests(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((ROOT / test).exists() for test in mutant.tests)


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
