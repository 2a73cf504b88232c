"""Is the recommender that is being erased worth having? Recall and NDCG beside a SASRec of the same size.

Both models see the same data set, split, window of 20 items and users, have the same number of parameters (within 1 %),
are trained by one seed until validation NDCG@10 stops rising, and rank the whole catalogue with nothing excluded. The
SASRec is ours (sasrec.py), trained here with both losses of the literature; the one that is better on validation is the
one compared. The generative model has the default recipe of `recerase train`.

Writes SASREC.md. Needs the data folder (RECERASE_DATA, or shared/data beside the repository). With `--results RUNS` it reads
instead the originals that `make results` left there, each beside a SASRec of its own size, and writes its other table.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from results import WORLDS, World
from sasrec import Fitted, SasRec, SasRecConfig, fit, gains, rank

from recerase.assembly import RUN, open_checkpoint_for
from recerase.catalog import Catalogue, Histories, Split, load_catalogue
from recerase.model.decode import recommend
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import TrainConfig, TrainLog, train
from recerase.runtime import environment, pinned
from recerase.sid.table import SidTable
from recerase.sid.table_files import read_table
from recerase.stats import bootstrap_mean, paired_ratio
from recerase.store import write_bytes
from recerase.types import SILENT, FloatArray

HERE = Path(__file__).resolve().parent
SETS = Path(os.environ.get("RECERASE_DATA", HERE.parent.parent / "shared" / "data"))
DATA = SETS / "amazon_industrial"
SASREC = (
    SasRecConfig(loss="ce", lr=1e-3, dropout=0.1),
    SasRecConfig(loss="bce", lr=1e-3, dropout=0.3, validate_every=2, patience=4),
)
SEARCH = """Its learning rate and dropout were chosen on validation NDCG@10. Full softmax: .0005 with dropout .1, .2, .3; .001 with
  .1, .2, .3 (and .3 with weight decay .05); .003 with .3, .5: .0697 to .0742. Binary cross-entropy:
  .001 with .3, .003 with .2: at most .0486. Of the generative model the
  dropout was chosen, on all validation users: 0 (the default before) .0637, .2 .0737, .3 with learning rate .002 .0709."""
"""What `SASREC` was chosen among, with a patience of 3 validations."""
TRIED = tuple(SasRecConfig(loss="ce", lr=1e-3, dropout=dropout) for dropout in (0.1, 0.3))
"""What the SASRec beside a model of RESULTS.md is chosen among, on validation NDCG@10."""
MARKS = ("<!-- models of RESULTS.md -->", "<!-- /models of RESULTS.md -->")
METRICS = ("recall@10", "ndcg@10")

Figures = Mapping[str, FloatArray]
"""Metric -> its value for every user."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One model's figures on the two held-out targets, and what it cost."""

    name: str
    parameters: int
    epochs: str
    seconds: str
    valid: Figures
    test: Figures


def score_generative(catalogue: Catalogue, table: SidTable, split: Split) -> Scored:
    """The generative recommender, trained as everywhere in the results, by constrained beam search of width 20."""
    model = new_recommender(ModelConfig(), table.schema, 0)
    log = train(model, table, split, TrainConfig(epochs=40, bf16=True), SILENT)
    began = time.process_time()
    found = [_generated(model, table, part) for part in (split.valid, split.test)]
    print(f"generative: {log.epochs} epochs, both targets decoded in {time.process_time() - began:.0f} s")
    return Scored(
        "recerase, generative", _parameters(model.module), _epochs(log.epochs, log.best_epoch), _trained(log), *found
    )


def _generated(model: Recommender, table: SidTable, histories: Histories) -> Figures:
    lists = recommend(model, table, histories, k=10).items
    return dict(zip(METRICS, gains(lists, histories.targets), strict=True))


def score_sasrec(config: SasRecConfig, fitted: Fitted, split: Split) -> Scored:
    found = [
        dict(zip(METRICS, gains(rank(fitted.model, part), part.targets), strict=True))
        for part in (split.valid, split.test)
    ]
    name = f"SASRec, {'full softmax' if config.loss == 'ce' else 'binary cross-entropy'}"
    epochs = _epochs(fitted.epochs, fitted.best_epoch)
    return Scored(name, _parameters(fitted.model), epochs, f"{fitted.seconds:.0f}", *found)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _epochs(run: int, best: int) -> str:
    return f"{run} (best {best})"


def _trained(log: TrainLog) -> str:
    return f"{log.seconds:.0f} *"


def report(ours: Scored, rivals: list[Scored], split: Split, seconds: float, results: str) -> str:
    """The content of SASREC.md; `results` is what it says of the models of RESULTS.md."""
    best = max(rivals, key=lambda rival: rival.valid["ndcg@10"].mean())
    where = environment(0, 1)
    figures = [(part, metric) for part in ("valid", "test") for metric in METRICS]
    head = ["model", "parameters", "epochs", "training s"]
    head += [f"{metric}, {'validation' if part == 'valid' else part}" for part, metric in figures]
    ratios = [f"**ratio, recerase / {best.name}**", f"{ours.parameters / best.parameters:.3f}", "", ""]
    ratios += [_ratio(getattr(ours, part)[metric], getattr(best, part)[metric]) for part, metric in figures]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *(_row(scored) for scored in (ours, *rivals)), ratios]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""# The generative recommender beside a SASRec of its size

Made {datetime.now(UTC):%Y-%m-%d} with `python benchmarks/bench_sasrec.py`, which writes this file: do not edit it.
amazon_industrial, SIDs `sids.json` (4 x 256), leave-last-two-out: n = {len(split.valid):,} users on validation,
{len(split.test):,} on test, all of them. Seed 0, one training each; {where.threads} thread, torch {where.torch},
{where.platform}. The run took {seconds:.0f} s of processor time.

{table}

Brackets are 95 % intervals over users; those of the ratio are paired over users. They do not cover what another seed of
the training would give.

- Compared is the SASRec with the better validation NDCG@10: {best.name}.
- {SEARCH}
- Same for both: split, window of the last 20 items, training pieces drawn anew every epoch, bfloat16 forward passes,
  early stop on validation NDCG@10 (generative: 1,500 users every 2nd epoch; SASRec: all users, every epoch or second),
  the whole catalogue ranked, nothing excluded, not even what a user has had.
- The generative model is decoded with 20 beams; SASRec scores every item. SASRec has width 128, 2 blocks of 2 heads,
  and item embeddings shared between input and output.
- Seconds are processor time on one thread. \\* Wall time; the machine did other work as well.

{results}
"""


def _row(scored: Scored) -> list[str]:
    figures = [_mean(getattr(scored, part)[metric]) for part in ("valid", "test") for metric in METRICS]
    return [scored.name, f"{scored.parameters:,}", scored.epochs, scored.seconds, *figures]


def _mean(values: FloatArray) -> str:
    found = bootstrap_mean(values)
    return f"{values.mean():.4f} [{found.low:.4f}, {found.high:.4f}]"


def _ratio(subject: FloatArray, versus: FloatArray) -> str:
    value, found = paired_ratio(subject, versus)
    return f"**{value:.3f}** [{found.low:.3f}, {found.high:.3f}]"


def of_size(parameters: int, n_items: int) -> int:
    """The even width at which a SASRec over `n_items` comes nearest to so many parameters."""
    with torch.device("meta"):
        sizes = {w: _parameters(SasRec(SasRecConfig(width=w), n_items)) for w in range(16, 257, 2)}
    return min(sizes, key=lambda width: abs(sizes[width] - parameters))


def beside(world: World, runs: Path) -> Iterator[list[str]]:
    """The rows of one original of RESULTS.md: itself, the better of the SASRecs of its size, and their ratio."""
    catalogue = load_catalogue(SETS / world.data)
    checkpoint = open_checkpoint_for(runs / f"{world.name}-orig-0", catalogue, RUN)
    split = catalogue.interactions.split()
    model, table = checkpoint.recommender, checkpoint.table
    found = [_generated(model, table, part) for part in (split.valid, split.test)]
    ours = Scored(f"{world.data}: recerase", _parameters(model.module), str(world.epochs), "", *found)
    width = of_size(ours.parameters, len(catalogue.items))
    fitted = [fit(replace(config, width=width), split, len(catalogue.items), print) for config in TRIED]
    best = max(fitted, key=lambda x: x.best)
    rival = score_sasrec(best.model.config, best, split)
    rival = replace(rival, name=f"SASRec, width {width}, dropout {best.model.config.dropout}")
    figures = [(part, metric) for part in ("valid", "test") for metric in METRICS]
    ratio = [_ratio(getattr(ours, part)[metric], getattr(rival, part)[metric]) for part, metric in figures]
    for scored in (ours, rival):
        row = _row(scored)
        yield [*row[:3], *row[4:]]
    yield [f"**ratio**, n = {len(split.test):,}", f"{ours.parameters / rival.parameters:.3f}", "", *ratio]


def results_part(runs: Path) -> str:
    """What SASREC.md says of the models that RESULTS.md erases from."""
    head = ["model", "parameters", "epochs"]
    head += [f"{metric}, {part}" for part in ("validation", "test") for metric in METRICS]
    with pinned(threads=1):
        rows = [row for world in WORLDS for row in beside(world, runs)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows))
    return f"""{MARKS[0]}
## The models of RESULTS.md

Made {datetime.now(UTC):%Y-%m-%d} with `python benchmarks/bench_sasrec.py --results RUNS`. The originals as `make results` trains
them (fewer epochs than above), seed 0; the SASRec has full softmax, the even width that comes nearest to as many parameters, and
that one of two dropouts (.1, .3; learning rate .001) which is better on validation NDCG@10. All else as above.

{table}
{MARKS[1]}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="RUNS", help="read the models of RESULTS.md, and write that table alone")
    given = parser.parse_args()
    if not DATA.is_dir():
        print(
            f"bench_sasrec: no data set at {DATA}: set RECERASE_DATA to a folder that holds it. Nothing was measured."
        )
        return 0
    page = HERE / "SASREC.md"
    had = page.read_text("utf-8") if page.is_file() else ""
    kept = re.search(f"{MARKS[0]}.*{MARKS[1]}", had, re.S)
    if given.results:
        part = results_part(Path(given.results))
        text = had.replace(kept[0], part) if kept else f"{had.rstrip()}\n\n{part}\n"
        write_bytes(page, text.encode())
        print(part)
        return 0
    began = time.process_time()
    catalogue = load_catalogue(DATA)
    table = read_table(DATA / "sids.json").aligned(catalogue.items.item_ids)
    split = catalogue.interactions.split()
    with pinned(threads=1):
        ours = score_generative(catalogue, table, split)
        rivals = [score_sasrec(config, fit(config, split, len(catalogue.items), print), split) for config in SASREC]
    text = report(ours, rivals, split, time.process_time() - began, kept[0] if kept else "")
    write_bytes(page, text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
