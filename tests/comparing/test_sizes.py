"""How many users are read: fewer for a search, and for masses, where that was asked, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.comparing.conftest import CONCEPT, QUICK, RUN, Compare, Shop

from recerase import api
from recerase.__main__ import run
from recerase.assembly import open_checkpoint_for
from recerase.audit.probes import AuditConfig
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT
from recerase.comparing.cells import Bench
from recerase.comparing.run import CompareConfig
from recerase.earlier import gone_from
from recerase.errors import UsageError


def test_a_search_reads_fewer_validation_users_and_the_test_as_many_as_before(shop: Shop, tmp_path: Path) -> None:
    catalogue = load_catalogue(shop.data)
    concept = parse_concept([DEMO_CONCEPT], catalogue.items)
    before = open_checkpoint_for(shop.model, catalogue, RUN)
    gone = gone_from([], (), catalogue, before.table)
    few, all_ = (Bench(catalogue, concept, before, gone, AuditConfig(), RUN, tmp_path, n) for n in (7, None))
    split = catalogue.interactions.split()
    drawn = few.worlds["valid"].histories
    assert len(drawn) == 7
    assert len(all_.worlds["valid"].histories) == len(split.valid)
    places = np.flatnonzero(np.isin(split.valid.users, drawn.users))
    assert np.array_equal(drawn.targets, split.valid.targets[places])  # one interaction before the test's
    for bench in (few, all_):
        assert np.array_equal(bench.worlds["test"].histories.users, split.test.users)
    assert few.reading_key("x", "subject", "test") == all_.reading_key("x", "subject", "test")
    assert few.reading_key("x", "subject", "valid") != all_.reading_key("x", "subject", "valid")


def test_what_was_asked_for_is_read_and_other_sizes_are_other_cells(
    shop: Shop, compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compare", str(shop.model), "--concept", DEMO_CONCEPT, "--data", str(shop.data), "--out", str(out)]
    words += ["--seeds", "0", "--max-users", "25", "--threads", "1", "--device", "cpu", "--search", "2", "-m", "npo"]
    words += ["--set", QUICK[0], "--set", QUICK[1], "--search-users", "6", "--mass-users", "5"]
    assert run(words) == 0
    assert "on 6 validation users" in capsys.readouterr().out
    made = json.loads((out / "comparison.json").read_bytes())
    assert made["search"]["users"] == 6
    sizes = {row["name"]: {name: x["n"] for name, x in row["figures"].items()} for row in made["rows"]}
    for name in ("original", "npo"):
        assert sizes[name]["natural.exposure@10"] == 25
        assert sizes[name]["natural.mass.old"] == sizes[name]["saturated.mass.new"] == 5
        assert sizes[name]["saturated.exposure@10"] == 5
        assert sizes[name]["natural_concept_users.mass.old"] <= 5

    def states(**sizes: int) -> list[str]:
        fields = {"search_users": 6, "mass_users": 5, "max_users": 25} | sizes
        config = CompareConfig(("npo",), (0,), QUICK[:2], search=2, **fields)  # type: ignore[arg-type]
        return [x.state for x in api.plan_compare(shop.model, CONCEPT, shop.data, out, config, run=RUN)]

    assert states() == ["done", "done", "done"]
    assert states(search_users=7) == states(mass_users=6) == ["to do", "to do", "after the search"]
    assert states(max_users=24) == ["done", "done", "to do"]  # what was chosen on is read as before


@pytest.mark.parametrize("option", ["--search-users", "--mass-users"])
def test_nobody_is_no_size(shop: Shop, tmp_path: Path, option: str) -> None:
    words = ["compare", str(shop.model), "--concept", DEMO_CONCEPT, "--data", str(shop.data)]
    assert run([*words, "--out", str(tmp_path / "out"), option, "0"]) == 2
    with pytest.raises(UsageError, match="fewer than 1"):
        CompareConfig(("npo",), **{option[2:].replace("-", "_"): 0})
    assert not list(tmp_path.iterdir())
