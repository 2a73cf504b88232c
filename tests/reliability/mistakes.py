"""The catalogue of user mistakes that test_mistakes.py tries.

A mistake is a row: how to set it up, the command line, the exit code, and what its one line must say. Rows without a
set-up run on the shared job; those with one get a copy of it to spoil. `{out}` is a path where nothing is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .conftest import Job

Setup = Callable[[Job], object]


@dataclass(frozen=True)
class Mistake:
    """One row of the catalogue."""

    line: str
    code: int
    cause: str
    """Regular expression for the first sentence."""
    remedy: str
    """Regular expression for what to do about it."""
    setup: Setup | None = None
    lines: int = 1


def write(name: str, content: str | bytes) -> Setup:
    """Put a file into the job's home, which is the working directory."""
    data = content.encode() if isinstance(content, str) else content
    return lambda job: (job.home / name).write_bytes(data)


def change(name: str, edit: Callable[[pa.Table], pa.Table]) -> Setup:
    """Rewrite a parquet file of the job; its manifest goes, as in data that somebody else wrote."""

    def spoil(job: Job) -> None:
        (job.home / name).parent.joinpath("recerase.json").unlink(missing_ok=True)
        pq.write_table(edit(pq.read_table(job.home / name)), job.home / name)

    return spoil


def flip(name: str) -> Setup:
    """One bit of a file."""

    def spoil(job: Job) -> None:
        data = bytearray((job.home / name).read_bytes())
        data[len(data) // 2] ^= 1
        (job.home / name).write_bytes(data)

    return spoil


def vectors(spoil: Callable[[np.ndarray], np.ndarray]) -> Setup:
    return lambda job: np.save(job.home / "vectors.npy", spoil(np.ones((260, 4), np.float32)))


def with_nan(array: np.ndarray) -> np.ndarray:
    array[7, 2] = np.nan
    return array


def set_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def other_catalogue(job: Job) -> None:
    """A data directory that lacks the last item of the one the checkpoints speak of."""
    items, acts = (pq.read_table(job.data / f"{n}.parquet") for n in ("items", "interactions"))
    gone = items["item_id"][-1].as_py()
    (job.home / "other").mkdir()
    pq.write_table(items.slice(0, items.num_rows - 1), job.home / "other" / "items.parquet")
    pq.write_table(
        acts.filter(pa.compute.not_equal(acts["item_id"], gone)), job.home / "other" / "interactions.parquet"
    )


def no_parquet(job: Job) -> None:
    (job.data / "recerase.json").unlink()
    (job.data / "items.parquet").write_text("x")


def other_table(job: Job) -> None:
    """The first two items of the checkpoint's table change places; the manifest stays."""
    table = pq.read_table(job.model / "sids.parquet")
    turned = pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)])["codes"]
    pq.write_table(table.set_column(1, "codes", turned), job.model / "sids.parquet")


CSV_ITEMS, CSV_ACTS = "item_id,title\na,A thing\nb,B thing\n", "user_id,item_id,timestamp\nx,a,1\nx,b,2\nx,a,3\n"


def csv(items: str | bytes, acts: str | bytes = CSV_ACTS) -> Setup:
    return lambda job: (write("items.csv", items)(job), write("acts.csv", acts)(job))


AUDIT = "audit model --concept {concept} --data data --threads 1"
ERASE = "erase model --concept {concept} --data data --out {out} --threads 1"
TOKENIZE = "tokenize data --out {out} --dims 8 --codes 8"
TRAIN = "train data --sids sids --out {out} --epochs 1 --threads 1"
CONCEPT = "concept --data data "
IMPORT = "import csv items.csv acts.csv --out {out}"

MISTAKES: dict[str, Mistake] = {
    # what does not exist, or is something else
    "data that is not there": Mistake("concept brand=x --data nowhere", 4, "no data directory nowhere", "Give"),
    "a file for the data": Mistake("concept brand=x --data policy.toml", 4, "no data directory policy.toml", "Give"),
    "a checkpoint for the data": Mistake("concept brand=x --data model", 4, "no file model/items.parquet", "Give"),
    "data for the checkpoint": Mistake(AUDIT.replace("model", "data"), 4, "data is no checkpoint", "Give the directory"),
    "a report for the checkpoint": Mistake(AUDIT.replace("model", "audit.json"), 4, "no checkpoint", "Give the directory"),
    "a checkpoint that is not there": Mistake(AUDIT.replace("model", "modle"), 4, "modle does not exist", "Check"),
    "a checkpoint for the report": Mistake("report show model", 4, "Cannot read model", "Check the path"),
    "data for the SIDs": Mistake(
        TRAIN.replace("--sids sids", "--sids data"), 4, "data has no sids.parquet", "recerase tokenize",
    ),
    "no path to inspect": Mistake("inspect nowhere", 4, "nowhere does not exist", "Check"),
    "a directory of nothing": Mistake("inspect .", 4, "nothing recerase reads", "It reads"),
    "a policy that is not there": Mistake(
        AUDIT + " --policy nowhere.toml", 2, "Cannot read the policy nowhere.toml", "Check the path",
    ),
    "settings that are not there": Mistake("audit --settings nowhere.toml", 2, "nowhere.toml", "Check"),
    "an original that is not there": Mistake(AUDIT + " --original nowhere", 4, "nowhere does not exist", "Check"),
    "a baseline that is not there": Mistake(
        AUDIT + " --baseline no.json --fail-on any", 4, "Cannot read no.json", "Check the path",
    ),
    # misspelt words
    "a misspelt command": Mistake("adit model", 2, "No such command 'adit'", "recerase --help"),
    "a misspelt option": Mistake("audit model --polcy x", 2, "--polcy", "--policy"),
    "an option without its value": Mistake("audit model --concept", 2, "--concept", "--help"),
    "a misspelt method": Mistake(ERASE + " -m tracre --plan", 2, "tracre", "tracer"),
    "a misspelt preset": Mistake(ERASE + " -m tracer/papr --plan", 2, "papr", "paper"),
    "a misspelt setting of a method": Mistake(ERASE + " --set reassign_step=2 --plan", 2, "reassign_step", "reassign"),
    "a misspelt reader": Mistake("import cvs a b --out {out}", 2, "no reader 'cvs'", "csv"),
    "a misspelt device": Mistake(AUDIT + " --device gpu", 2, "no device 'gpu'", "cpu, cuda"),
    "a misspelt scope": Mistake(AUDIT + " --scope outptu", 2, "outptu.*'output', 'influence'", "audit --help"),
    "a misspelt family": Mistake("list methos", 2, "methos.*'methods'", "list --help"),
    "a misspelt subcommand": Mistake("policy chek", 2, "chek", "check"),
    # concepts
    "no concept": Mistake("audit model --data data", 2, "--concept is missing", "recerase.toml"),
    "no data": Mistake("audit model --concept brand=x", 2, "--data is missing", "recerase.toml"),
    "a brand nobody has": Mistake(CONCEPT + "brand=Nonesuch", 2, "No item has the brand 'Nonesuch'", "Try|Did"),
    "a misspelt category": Mistake(CONCEPT + "category=Vapign", 2, "No item has the category", "Did you mean Vaping"),
    "a category given as a brand": Mistake(CONCEPT + "brand=Vaping", 2, "No item has the brand", 'category="Vaping"'),
    "an unknown item": Mistake(CONCEPT + "item:D00001,X9", 2, "no item X9", "item_id column"),
    "a spec without an operator": Mistake(CONCEPT + "Vaping", 2, "'Vaping' cannot be read", "Use brand="),
    "a spec with the wrong key": Mistake(CONCEPT + "categry=Vaping", 2, "cannot be read", "Did you mean category="),
    "a bad regular expression": Mistake(CONCEPT + "'text~\"va(pe\"'", 2, "regular expression .* wrong", "Escape"),
    "an empty pattern": Mistake(CONCEPT + "text~", 2, "no pattern", "Use"),
    "minus alone": Mistake(CONCEPT + "'!category=Vaping'", 2, "names nothing", "Use"),
    "everything taken out": Mistake(CONCEPT + "category=Vaping '!category=Vaping'", 2, "is empty", "Drop"),
    "an item list that is not there": Mistake(CONCEPT + "@ids.txt", 2, "'ids.txt' cannot be read", "one item id a line"),
    "an item list that is no text": Mistake(
        CONCEPT + "@ids.txt", 2, "'ids.txt' cannot be read", "text file", write("ids.txt", b"\xff\xfe\x00\x01")
    ),
    "the whole catalogue": Mistake(CONCEPT + "text~.", 2, "whole catalogue", "something must remain"),
    "a quarter of the catalogue": Mistake(
        'audit model --concept title~^[A-K] --data data --threads 1', 2, "more than 25%", "--yes"
    ),
    "a word nobody is like": Mistake(CONCEPT + "like:xyzzy --sids model", 2, "No title has the words", "other words"),
    "a radius that is none": Mistake(CONCEPT + "like:vape:9 --sids model", 2, "radius 9", "at most 2"),
    "like: without embeddings": Mistake(CONCEPT + "like:vape", 2, "needs item embeddings", "Give SIDs"),
    # numbers
    "negative users": Mistake(AUDIT + " --max-users -3", 2, "--max-users.*greater than or equal to 1", "--help"),
    "no epochs": Mistake(TRAIN + " --epochs 0", 2, "--epochs", "--help"),
    "words for a number": Mistake(TRAIN + " --epochs many", 2, "--epochs.*integer", "--help"),
    "a negative seed": Mistake(AUDIT + " --seed -1", 2, "--seed", "--help"),
    "a huge seed": Mistake(TRAIN + " --seed 99999999999999999999", 2, "--seed.*less than or equal to", "--help"),
    "a rate that is no number": Mistake(TRAIN + " --lr nan", 2, "--lr", "--help"),
    "heads that do not divide the width": Mistake(TRAIN + " --width 10 --heads 4", 2, "10 cannot be split", "multiple"),
    "too many levels": Mistake("tokenize data --out {out} --levels 99", 2, "--levels", "--help"),
    "no items asked for": Mistake("recommend model --data data --top 0 --out {out}", 2, "--top", "--help"),
    # outputs
    "an output that exists": Mistake("tokenize data --out sids", 2, "sids exists", "--force"),
    "an output that is the input": Mistake(
        ERASE.replace("{out}", "model") + " --force", 2, "--out model is", "name another",
    ),
    "an output inside the input": Mistake(
        ERASE.replace("{out}", "model/erased"), 2, "inside the input model", "name another",
    ),
    "an output in a directory that is not there": Mistake(
        "policy init --out no/where.toml", 2, "no/where.toml is in a directory", "Make the directory",
    ),
    "a list that exists": Mistake("recommend model --data data --out audit.json", 2, "audit.json exists", "--force"),
    "a report of an unknown kind": Mistake(AUDIT + " -o report.pdf", 2, "report.pdf has no known", r"\.json"),
    "a report in a directory that is not there": Mistake(
        AUDIT + " -o no/where.json", 2, "no/where.json", "Make the directory",
    ),
    "a policy that exists": Mistake("policy init --out policy.toml", 2, "policy.toml exists", "--force"),
    "a setting without a value": Mistake(
        ERASE + " --set reassign_steps --plan", 2, "reassign_steps.*not key=value", "--set steps=300",
    ),
    "a setting twice": Mistake(ERASE + " --set pool=1 --set pool=2 --plan", 2, "pool is set twice", "once"),
    "a setting of the wrong kind": Mistake(
        ERASE + " --set reassign_steps=many --plan", 2, "reassign_steps=many is not a whole number", "Its settings",
    ),
    # settings and policies
    "an unknown key in recerase.toml": Mistake(
        "audit", 2, "unknown key 'dta'.*did you mean 'data'", "Known keys", write("recerase.toml", 'dta = "data"\n')
    ),
    "a wrong value in recerase.toml": Mistake(
        "audit", 2, "data must be a path", "Known keys", write("recerase.toml", "data = 3\n")
    ),
    "a recerase.toml that is no TOML": Mistake("audit", 2, "not TOML", "Mend", write("recerase.toml", "data: here\n")),
    "a policy that is no TOML": Mistake(
        "policy check mine.toml", 2, "mine.toml is not TOML", "Mend", write("mine.toml", "[[rule]\n")
    ),
    "five mistakes in a policy": Mistake(
        "policy check mine.toml",
        2,
        "(?s)minn_users.*confidence.*metrik.*natural.exposre.*sets no limit.*'b' stands there",
        "policy init",
        write(
            "mine.toml",
            'schema = "recerase.policy/1"\n[audit]\nminn_users = 3\nconfidence = 7\n'
            '[[rule]]\nid = "a"\nmetrik = "natural.exposure@10"\nmax = 1\n'
            '[[rule]]\nid = "b"\nmetric = "natural.exposre@10"\nmax = 1\n'
            '[[rule]]\nid = "b"\nmetric = "natural.exposure@10"\n',
        ),
        lines=9,
    ),
    # data that breaks the schema
    "a column under another name": Mistake(
        CONCEPT + "brand=x",
        4,
        "items.parquet has no column title",
        "Rename",
        change("data/items.parquet", lambda t: t.rename_columns(["name" if c == "title" else c for c in t.column_names])),
    ),
    "an item twice": Mistake(
        CONCEPT + "brand=x", 4, "'D00000' more than once", "Keep one row",
        change("data/items.parquet", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    ),
    "an interaction twice": Mistake(
        CONCEPT + "brand=x", 4, "interaction twice", "Remove",
        change("data/interactions.parquet", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    ),
    "no interactions": Mistake(
        CONCEPT + "brand=x", 4, "interactions.parquet has no rows", "Give",
        change("data/interactions.parquet", lambda t: t.slice(0, 0)),
    ),
    "interactions with unknown items": Mistake(
        CONCEPT + "brand=x", 4, "items that items.parquet lacks", "Add them",
        change("data/items.parquet", lambda t: t.slice(5)),
    ),
    "times with fractions": Mistake(
        CONCEPT + "brand=x", 4, "timestamp", "Store timestamp",
        change("data/interactions.parquet", lambda t: set_column(t, "timestamp", [0.5] * t.num_rows)),
    ),
    "histories too short to hold anything out": Mistake(
        AUDIT, 4, "No user", "three interactions",
        change("data/interactions.parquet", lambda t: set_column(t, "user_id", [f"u{i}" for i in range(t.num_rows)])),
    ),
    "parquet that is none": Mistake(CONCEPT + "brand=x", 4, "items.parquet cannot be read", "Write it again", no_parquet),
    "data changed behind its manifest": Mistake(
        CONCEPT + "brand=x", 4, "data/items.parquet is not what", "Restore", write("data/items.parquet", "x")
    ),
    # embeddings and tables
    "embeddings that are not there": Mistake(TOKENIZE + " --embeddings v.npy", 4, "no embeddings file", "Check"),
    "embeddings with NaN": Mistake(
        TOKENIZE + " --embeddings vectors.npy", 4, "NaN or infinity in row 7", "Embed", vectors(with_nan)
    ),
    "too few embeddings": Mistake(
        TOKENIZE + " --embeddings vectors.npy", 4, "has 9 rows, but the catalogue has 260", "one row", vectors(lambda a: a[:9])
    ),
    "embeddings in a pickle": Mistake(
        TOKENIZE + " --embeddings v.pt", 4, "pickle", "Save it as", write("v.pt", b"\x80\x02")
    ),
    "embeddings of an unknown kind": Mistake(
        TOKENIZE + " --embeddings v.txt", 4, "v.txt is not an embeddings file", "Use", write("v.txt", "1 2 3")
    ),
    "a JSON table with words": Mistake(
        TRAIN.replace("--sids sids", "--sids t.json"), 4, "t.json is not a SID table", "Expected",
        write("t.json", '{"D00000": ["one", "two"]}'),
    ),
    "a JSON table with an empty SID": Mistake(
        TRAIN.replace("--sids sids", "--sids t.json"), 4, "t.json is not a SID table", "Expected",
        write("t.json", '{"D00000": [1, 2], "D00001": []}'),
    ),
    "a JSON table that lacks items": Mistake(
        TRAIN.replace("--sids sids", "--sids t.json"), 4, "lacks 259 items", "Use the catalogue",
        write("t.json", '{"D00000": [1, 2]}'),
    ),
    "the table of another checkpoint": Mistake(AUDIT, 4, "model/sids.parquet is not what", "Restore", other_table),
    "data of another catalogue": Mistake(
        AUDIT.replace("--data data", "--data other"), 4, "SID table names 1 items that the catalogue lacks", "Use",
        other_catalogue,
    ),
    "a spoilt weight": Mistake(AUDIT, 4, "model.safetensors is not what", "Restore", flip("model/model.safetensors")),
    "a spoilt report": Mistake("report show audit.json", 4, "audit.json", "again", flip("audit.json")),
    "a spoilt table": Mistake(AUDIT, 4, "model/sids.parquet is not what", "Restore", flip("model/sids.parquet")),
    # other people's files
    "too few files": Mistake("import csv items.csv --out {out}", 2, "cannot take 1 path", "It takes: ITEMS"),
    "CSV without a header": Mistake(IMPORT, 4, "no column", "Rename", csv("a,A thing\nb,B thing\n")),
    "CSV with a row too long": Mistake(
        IMPORT, 4, "items.csv cannot be read.*got 3", "Check the path and the format", csv("item_id,title\na,A,thing\n"),
    ),
    "CSV that is not UTF-8": Mistake(
        IMPORT, 4, "items.csv.*UTF-?8", "Check|Save", csv(CSV_ITEMS.replace("A thing", "Caf\xe9").encode("latin-1")),
    ),
    "CSV in UTF-16": Mistake(IMPORT, 4, "items.csv cannot be read", "format", csv(CSV_ITEMS.encode("utf-16"))),
    "an empty CSV": Mistake(IMPORT, 4, "items.csv.*[Ee]mpty", "format", csv("")),
    "CSV with semicolons": Mistake(IMPORT, 4, "no column item_id", "Rename", csv(CSV_ITEMS.replace(",", ";"))),
    "CSV with dates": Mistake(
        IMPORT, 4, "timestamp", "Store timestamp", csv(CSV_ITEMS, CSV_ACTS.replace(",1\n", ",yesterday\n"))
    ),
    "a directory that is no MovieLens": Mistake("import movielens data --out {out}", 4, "not a MovieLens", "u.item"),
}  # fmt: skip
