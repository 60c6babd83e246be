"""The table and the picture of a routing policy."""

import csv

import pytest

from ahpa.analysis.policy import policy_table, save_csv, save_plot
from ahpa.registry import ROUTERS, build
from ahpa.registry.contracts import LevelSpec
from ahpa.testing.common import toy_geometry

SIZES = [(128, 1)] * 3 + [(128, 2)] + [(256, 2)] * 2 + [(256, 4)] + [(512, 4)] * 2 + [(512, 8)] * 6
SD = {f"l{index}": LevelSpec(*size) for index, size in enumerate(SIZES)}


def make(name, **options):
    return build(ROUTERS, dict(type=name, **options), levels=SD, geometry=toy_geometry(width=7))


@pytest.mark.parametrize(("groups", "count"), [("G1+G2+G3+G4", 4), (15, 1)])
def test_the_policy_shows_the_membership(tmp_path, groups, count):
    router = make("PartitionRouter", groups=groups)
    table = policy_table(router, points=5)
    names = [f"membership_{group}_{level}" for group in router.groups for level in SD]
    shown = [column for column in table if column.startswith("membership")]
    assert shown == names and len(names) == 15 * count
    first = next(iter(router.groups))
    assert table[names[0]] == [router.membership()[first][0].item()] * 5
    save_csv(table, tmp_path / "p.csv")
    with open(tmp_path / "p.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row[names[0]]) == pytest.approx(table[names[0]][0], rel=1e-4)
    save_plot(table, router.groups, tmp_path / "p.png", title="t")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_fixed_groups_have_no_membership():
    table = policy_table(make("MLPRouter", groups="1/1"))
    assert not any("membership" in column for column in table)
