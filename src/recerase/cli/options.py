"""The options that several commands share, each with its help in one place, and how they meet recerase.toml.

A value on the command line wins over recerase.toml, which wins over the default; `choose` is the whole rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from recerase.errors import UsageError

if TYPE_CHECKING:
    from recerase.assembly import ConceptSpec
    from recerase.settings import Settings

Value = TypeVar("Value")


class ScopeName(str, Enum):
    """What is to be free of the concept."""

    output = "output"
    influence = "influence"


DataArgument = Annotated[
    Path | None, typer.Argument(metavar="DATA", help="Data directory: items.parquet and interactions.parquet.")
]
CheckpointArgument = Annotated[Path | None, typer.Argument(metavar="CKPT", help="Checkpoint directory.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory: items.parquet and interactions.parquet."),
]
ConceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--concept",
        metavar="SPEC",
        help='brand=Acme, category=Horror, text~"\\bvape\\b", title~"...", item:12,77, @ids.txt, like:"e-cigarettes". '
        "Repeat for a union; a leading ! takes items out again.",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="TEXT", help="What the report calls the concept (default: its spec).")
]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Accept a concept of more than 25 % of the catalogue.", show_default=False)
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an output that recerase wrote before.", show_default=False)
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of everything that is drawn.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="torch threads; recorded, for results depend on it. Default: all cores."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Compute in float32, bfloat16 or float16; recorded, for results depend on it. Default: as stored.",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Canonical JSON on stdout.", show_default=False)]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Policy file. Default: the one recerase ships.")
]
OutputOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Also write the report; format by extension: .json, .md, .html, .xml (JUnit), .sarif. Repeat.",
    ),
]


class FailOnName(str, Enum):
    """What makes the exit code 1."""

    policy = "policy"
    regression = "regression"
    any = "any"
    never = "never"


BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE", help="An accepted report (`recerase report bless`) to compare with."),
]
FailOnOption = Annotated[
    FailOnName,
    typer.Option(
        "--fail-on",
        help="policy: a violated rule. regression: a rule that is worse than in --baseline. any: either. never.",
    ),
]
ResumeOption = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh",
        help="Continue what an interrupted run of the same command left, and refuse when there is nothing to continue; "
        "or start over. Default: continue when everything it depends on is unchanged.",
        show_default=False,
    ),
]
AnnotateOption = Annotated[
    bool | None,
    typer.Option(
        "--annotate/--no-annotate",
        help="On stderr, GitHub's annotations: an error for each violated rule. Default: when GITHUB_ACTIONS is true.",
        show_default=False,
    ),
]
OriginalOption = Annotated[
    Path | None,
    typer.Option(
        "--original",
        metavar="CKPT",
        help="The checkpoint before erasure: the control that must fail, and the baseline.",
    ),
]
ReferenceOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        metavar="CKPT",
        help="A checkpoint trained without the concept. Repeat for other seeds: three tell how far a clean one is from another, "
        "and whether the audited one could be one more.",
    ),
]
EarlierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--already-erased",
        metavar="SPEC",
        help="A concept that was erased from this checkpoint before, where the checkpoint does not remember it. Its items are kept "
        "by no method, count as retained nowhere, and must stay out. Repeat for several concepts.",
    ),
]
HeldOutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--held-out",
        metavar="SPEC",
        help="Items of the concept's kind that are not in the request: from the standard profile on it is told how likely they still "
        "are (spill.held_out), and no shipped rule asks. What the concept has of them is left out. Repeat for a union.",
    ),
]
ScopeOption = Annotated[
    ScopeName,
    typer.Option("--scope", help="output: never recommended. influence: nor may it steer what is recommended."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-pickle", help="Read weights stored as a pickle (weights only).", show_default=False)
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout", metavar="NAME", help="Layout of a checkpoint whose files do not tell: `recerase list layouts`."
    ),
]
LayoutSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layout-set",
        metavar="KEY=VALUE",
        help="What another tool's files do not say: sids=FILE, its SID table; window=N, items of a history; prompt=FILE, how the "
        'model is asked, in JSON: {"text": "Bought: {history} Next:", "separator": ", "} and, where needed, "begin" and "end" '
        'around each SID, "empty" for no history, "bos". Repeat.',
    ),
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        metavar="FILE",
        help="Item vectors to fit codebooks from, for a checkpoint of another tool. Default: the items' words.",
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="Settings file. Default: recerase.toml here, or pyproject.toml."),
]


class ProfileName(str, Enum):
    """How much an audit asks."""

    quick = "quick"
    standard = "standard"
    thorough = "thorough"


ProfileOption = Annotated[
    ProfileName | None,
    typer.Option(
        "--profile",
        help="Which probes are run: quick (no training, no gradients), standard (minutes on two cores), thorough (all). "
        "Default: the policy's.",
    ),
]
MaxUsersOption = Annotated[
    int | None, typer.Option("--max-users", min=1, help="Read at most this many users, drawn with --seed.")
]


def read_settings(path: Path | None) -> Settings:
    """The settings file given, or the one in this directory, or empty settings."""
    from recerase.settings import load_settings

    return load_settings(path)


def choose(given: Value | None, from_settings: Value | None, flag: str, key: str) -> Value:
    """The command line's value, else recerase.toml's. Raises UsageError saying both ways to give it."""
    if given is not None and given != []:
        return given
    if from_settings is not None and from_settings != ():
        return from_settings
    raise UsageError(f"{flag} is missing.", f"Pass it, or set {key} in recerase.toml.")


def layout_options(pairs: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """The --layout-set options of a command. Raises UsageError for what is no KEY=VALUE, or a key given twice."""
    from recerase.planning import key_values

    return tuple(key_values(pairs or ()).items())


def earlier_specs(specs: Sequence[str] | None) -> tuple[ConceptSpec, ...]:
    """The --already-erased options of a command, a concept each; how large one may be was asked when it was erased."""
    return tuple(concept_spec([spec], allow_large=True) for spec in specs or ())


def concept_spec(specs: Sequence[str], name: str | None = None, allow_large: bool = False) -> ConceptSpec:
    """The concept options of a command as one value."""
    from recerase.assembly import ConceptSpec

    return ConceptSpec(specs=tuple(specs), name=name, allow_large=allow_large)
