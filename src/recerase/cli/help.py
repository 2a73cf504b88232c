"""Help as text: the purpose, arguments, options and commands of one command, in boxes as wide as the terminal.

The deciding choice is that nothing is imported for it: the renderers of typer load rich, a Markdown parser and a syntax
highlighter, which was two thirds of what `recerase --help` took. What help texts use of Markdown is little: paragraphs,
indented lines that stand as they are, `code` and **bold**.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

_WIDEST, _NARROWEST = 110, 40
_NAMES = 30
"""The widest the column of names may be; what is longer stands on a line of its own."""
_PLAIN = str.maketrans("╭╮╰╯─│·", "++++-|-")
_BOLD, _CYAN, _DIM, _END = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"

Row = tuple[str, str]


class HelpCommand(TyperCommand):
    """A command whose help is rendered here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text(self, ctx))


class HelpGroup(TyperGroup):
    """A group whose help is rendered here, and which asks nothing heavy about `--help` when it was not given."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # None would be validated, and the validator takes as long to load as all the rest
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text(self, ctx))


def help_text(command: Any, ctx: Any, width: int | None = None) -> str:
    """The help of a command or a group, ready for stdout: with escapes only on a terminal, in its encoding."""
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((80, 24)).columns)) if width is None else width
    parts = [f"{_BOLD}{_indented(command.get_usage(ctx).strip(), width)}{_END}", _prose(command.help or "", width)]
    shown = [parameter for parameter in command.get_params(ctx) if not getattr(parameter, "hidden", False)]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        parts.append(_box(title, [_row(p, ctx) for p in shown if p.param_type_name == kind], width))
    parts += [_box(title, rows, width) for title, rows in _commands(command, ctx).items()]
    parts.append(_prose(command.epilog or "", width))
    return _for_stdout("\n\n".join(part for part in parts if part) + "\n")


def _row(parameter: Any, ctx: Any) -> Row:
    """Names and help of an argument or an option; typer adds the default and what else there is to say."""
    record: Row = parameter.get_help_record(ctx)
    return record


def _commands(group: Any, ctx: Any) -> dict[str, list[Row]]:
    """Title of a box -> its commands, with the first paragraph of their help."""
    boxes: dict[str, list[Row]] = {}
    for name in group.list_commands(ctx) if hasattr(group, "list_commands") else ():
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            purpose = (command.short_help or command.help or "").split("\n\n")[0]
            boxes.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, purpose))
    return boxes


def _box(title: str, rows: Sequence[Row], width: int) -> str:
    """Rows in two columns within a frame; nothing when there are none."""
    if not rows:
        return ""
    inner = width - 4
    column = min(_NAMES, max(len(name) for name, _ in rows))
    lines = [line for row in rows for line in _lines(*row, column, inner)]
    body = [f"{_DIM}│{_END} {text}{' ' * (inner - length)} {_DIM}│{_END}" for text, length in lines]
    top = f"{_DIM}╭─{_END} {_BOLD}{title}{_END} {_DIM}{'─' * (width - len(title) - 5)}╮{_END}"
    return "\n".join([top, *body, f"{_DIM}╰{'─' * (width - 2)}╯{_END}"])


def _lines(name: str, said: str, column: int, inner: int) -> Iterable[tuple[str, int]]:
    """The lines of one row, each with its length on the screen."""
    wrapped = textwrap.wrap(_spoken(said), inner - column - 2) or [""]
    first = wrapped[0]
    if len(name) <= column:
        yield f"{_CYAN}{name}{_END}{' ' * (column - len(name) + 2)}{first}", column + 2 + len(first)
        wrapped = wrapped[1:]
    else:
        for piece in textwrap.wrap(name, inner):
            yield f"{_CYAN}{piece}{_END}", len(piece)
    for line in wrapped:
        yield " " * (column + 2) + line, column + 2 + len(line)


def _prose(text: str, width: int) -> str:
    """Paragraphs filled to the width, bold ones bold; lines that are indented stand as they are."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("    "):
            paragraphs.append(textwrap.indent(textwrap.dedent(paragraph), "     "))
        elif paragraph.strip():
            heading = re.fullmatch(r"\*\*(.+)\*\*", paragraph.strip())
            filled = _indented(_spoken(paragraph), width)
            paragraphs.append(f"{_BOLD}{filled}{_END}" if heading else filled)
    return "\n\n".join(paragraphs)


def _indented(text: str, width: int) -> str:
    return textwrap.fill(text, width - 1, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)


def _spoken(text: str) -> str:
    """A text in one line, without the marks of Markdown."""
    return re.sub(r"`([^`]+)`|\*\*([^*]+)\*\*", lambda found: found[1] or found[2], " ".join(text.split()))


def _for_stdout(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        text = re.sub(r"\x1b\[\d+m", "", text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text
