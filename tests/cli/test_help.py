"""Help teaches: every command has a purpose, examples that its own parser accepts, and every option explained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
import typer

from recerase import __main__
from recerase.cli.app import app

ROOT = typer.main.get_command(app)


def commands(group: object = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())
EXAMPLES = [
    line.strip() for command in COMMANDS.values() for line in re.findall(r"^\s*recerase .*$", command.help, re.M)
]


def test_the_commands_of_the_design_are_there() -> None:
    names = {" ".join(path) for path in COMMANDS}
    assert names >= {
        "demo", "inspect", "tokenize", "train", "concept", "audit", "erase", "compare", "prepare", "recommend", "list", "import",
        "doctor", "report show", "report verify", "policy init", "policy check", "policy explain", "export blocklist",
        "export prefixes", "patch make", "patch apply", "patch revert", "patch show",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_a_sentence_and_an_example_of_itself(path: tuple[str, ...]) -> None:
    text = COMMANDS[path].help
    assert re.match(r"^[A-Z].*?[.?:]", text)
    assert f"recerase {' '.join(path)}" in text.split("**Examples**")[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name} has no help"


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_accepted_by_the_parser(example: str) -> None:
    words = shlex.split(example)[1:]
    group, context = ROOT, ROOT.make_context("recerase", ["list"])
    while hasattr(group, "commands"):
        group, words = group.commands[words[0]], words[1:]
    group.make_context(group.name, words, parent=context)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_shown_without_loading_anything_heavy(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.run([*path, "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
