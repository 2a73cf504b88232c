"""Every way recerase can refuse or fail, and the exit code each one owns.

An error is one sentence saying what is wrong and one saying what to do about it; nothing else decides an exit code.

    RecEraseError                    3  could not finish (no verdict; a later run may)
    ├── UsageError                   2  the command line, or a value given to it, cannot be used
    │   ├── SettingsError            2  recerase.toml holds an unknown key or a wrong value
    │   ├── PolicyError              2  the policy file cannot be used (all problems at once)
    │   ├── ConceptError             2  the concept is empty, too large, or its spec cannot be read
    │   └── OutputError              2  --out exists, or is one of the inputs
    ├── ArtefactError                4  a file is missing, corrupt, or not what its digest says
    │   ├── DataError                4  a catalogue, interactions or embeddings file breaks the schema
    │   ├── TableError               4  a SID table is malformed, or does not belong to its checkpoint or catalogue
    │   ├── CheckpointError          4  a checkpoint directory cannot be read
    │   └── PickleError              4  a pickle was offered where only data is accepted
    ├── WriteError                   3  writing failed (disk full, permission): nothing was replaced
    └── EraseError                   3  erasing did not do what it must; nothing was published

    Interrupted                 130/143  told to stop by a signal; no RecEraseError, so that no handler of errors stops it
"""

from __future__ import annotations


class RecEraseError(Exception):
    """What went wrong, in one sentence, with the remedy in another."""

    exit_code: int = 3

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class UsageError(RecEraseError):
    """The command line, or a value given to it, cannot be used."""

    exit_code = 2


class SettingsError(UsageError):
    """recerase.toml holds an unknown key or a value of the wrong kind."""


class PolicyError(UsageError):
    """The policy cannot be used; `message` lists every problem found."""


class ConceptError(UsageError):
    """The concept spec cannot be read, names nothing, or names too much."""


class OutputError(UsageError):
    """The output path exists already, or is one of the inputs."""


class ArtefactError(RecEraseError):
    """A file is missing, corrupt, or not what its digest says."""

    exit_code = 4


class DataError(ArtefactError):
    """A catalogue, interactions or embeddings file breaks the schema."""


class TableError(ArtefactError):
    """A SID table is malformed, or does not belong to its checkpoint or catalogue."""


class CheckpointError(ArtefactError):
    """A checkpoint directory cannot be read."""


class PickleError(ArtefactError):
    """A pickle was offered; recerase reads data, not programs."""


class WriteError(RecEraseError):
    """Writing failed; nothing that existed was changed."""


class EraseError(RecEraseError):
    """Erasing did not do what it must, so nothing was published."""


class Interrupted(BaseException):
    """The run was told to stop by a signal; not an Exception, because libraries swallow those."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.exit_code = 128 + signal
