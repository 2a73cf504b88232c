"""Is the recommender that is being erased worth having? Recall and NDCG beside a SASRec of the same size.

Both models see the same data set, split, window of 20 items and users, have the same number of parameters (within 1 %),
are trained by one seed until validation NDCG@10 stops rising, and rank the whole catalogue with nothing excluded. The
SASRec is ours (sasrec.py), trained here with both losses of the literature; the one that is better on validation is the
one compared. The generative model has the default recipe of `recerase train`.

Writes SASREC.md. Needs the data folder (RECERASE_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from sasrec import Fitted, SasRecConfig, fit, gains, rank

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
DATA = Path(os.environ.get("RECERASE_DATA", HERE.parent.parent / "shared" / "data")) / "amazon_industrial"
SASREC = (
    SasRecConfig(loss="ce", lr=1e-3, dropout=0.1),
    SasRecConfig(loss="bce", lr=1e-3, dropout=0.3, validate_every=2, patience=4),
)
SEARCH = """Its learning rate and dropout were chosen on validation NDCG@10. Full softmax: .0005 with dropout .1, .2, .3; .001 with
  .1, .2, .3 (and .3 with weight decay .05); .003 with .3, .5: .0697 to .0742. Binary cross-entropy:
  .001 with .3, .003 with .2: at most .0486. Of the generative model the
  dropout was chosen, on all validation users: 0 (the default before) .0637, .2 .0737, .3 with learning rate .002 .0709."""
"""What `SASREC` was chosen among, with a patience of 3 validations."""
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


def report(ours: Scored, rivals: list[Scored], split: Split, seconds: float) -> str:
    """The content of SASREC.md."""
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


def main() -> int:
    if not DATA.is_dir():
        print(
            f"bench_sasrec: no data set at {DATA}: set RECERASE_DATA to a folder that holds it. Nothing was measured."
        )
        return 0
    began = time.process_time()
    catalogue = load_catalogue(DATA)
    table = read_table(DATA / "sids.json").aligned(catalogue.items.item_ids)
    split = catalogue.interactions.split()
    with pinned(threads=1):
        ours = score_generative(catalogue, table, split)
        rivals = [score_sasrec(config, fit(config, split, len(catalogue.items), print), split) for config in SASREC]
    text = report(ours, rivals, split, time.process_time() - began)
    write_bytes(HERE / "SASREC.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
