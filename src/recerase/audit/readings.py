"""What one model answers, read once and shared: recommendation lists, exact masses, entropies, free generations.

The decision that shaped this file: a reading's key is made of the content that determines it (weights, histories,
tables, trie), not of the role or the probe that asked. The controls then cost what is new in them: a filter shares
every mass with its original, an original under its "old" table is the original itself, and an audited checkpoint
that *is* the original is read once. The cache is a plain dict, made by whoever runs the audit and handed in.

A long reading is made in blocks of whole batches, and each finished block is kept in the run's state. Batches are cut
by length over all histories before blocks are, so that a block, and a run that is continued, gives the bits of a
straight one. Processes that share an audit take the blocks in turn and exchange what they read, every one of them holds
the whole reading, and how many they are changes no bit of it, where each has as many --threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recerase.audit.cases import Case
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.errors import CheckpointError, DataError
from recerase.parallel import workers
from recerase.resume import Pieces
from recerase.store import canonical_json, sha256_bytes
from recerase.types import SILENT, BoolArray, FloatArray, IntArray, Observer, Role

if TYPE_CHECKING:
    from recerase.catalog.interactions import Histories
    from recerase.model.decode import Free
    from recerase.sid.table import SidTable

Side = Literal["new", "old"]
SIDES: tuple[Side, ...] = ("old", "new")
Cache = dict[Hashable, Any]
Arrays = dict[str, NDArray[Any]]
BLOCK = 8
"""Batches a block at most."""
_SHARES = 16
"""Blocks of a reading at least, where it has the batches: so that processes that share it are done at about one time."""
_ROUND = 4
"""Blocks a process reads before they are exchanged, where there are several: with them, what an interrupted audit loses."""


@dataclass(frozen=True, eq=False)
class Readings:
    """One model's answers in one world, each computed when first asked for."""

    model: AuditModel
    world: AuditWorld
    cache: Cache = field(default_factory=dict, repr=False, compare=False)
    observer: Observer = field(default=SILENT, repr=False, compare=False)
    state: Pieces | None = field(default=None, repr=False, compare=False)
    """Where finished blocks are kept, under a key of everything that is not in a reading's own."""
    beside: Mapping[Role, Readings] = field(default_factory=dict, repr=False, compare=False)
    """The models of the same audit, this one among them: for probes whose question is about two of them."""

    def histories(self, case: Case) -> Histories:
        """The case's histories as this model is to see them: a reference sees them without items of any concept."""
        return case.histories if self.model.reads_concept else case.histories.without(self.world.out)

    def lists(self, case: Case, side: Side = "new") -> IntArray:
        """[B, max k] item rows, best first, -1 where the list is short.

        `new`: the current table and its listed items. `old`: the table before erasure for histories and for output,
        with the concept listed, as a stale client would have it. Raises CheckpointError when the model says nothing.
        """
        found: IntArray = self._listed(case, side)["items"]
        return found

    def list_scores(self, case: Case, side: Side = "new") -> FloatArray:
        """[B, max k] log p(SID | history) of the items of `lists`, -inf where the list is short."""
        found: FloatArray = self._listed(case, side)["scores"]
        return found

    def _listed(self, case: Case, side: Side) -> Arrays:
        table, listed = self.model.table, self.model.listed
        if side == "old":
            table = self.model.old_table
            listed = table.listed | self.world.members
        listed = listed & table.present
        key = self._key("lists", case, _spelling(table), _digest(listed))
        if key not in self.cache:
            self.cache[key] = self._decode(key, case, table, listed)
        found: Arrays = self.cache[key]
        return found

    def mass(self, case: Case, side: Side = "new", read: Side = "new") -> FloatArray:
        """[B] exact probability of generating a concept item's SID.

        `side` is the table of the SIDs that are scored, `read` the table the histories are encoded with. Zero where no
        concept item has a SID. Raises CheckpointError when the model gives no number.
        """
        found: FloatArray = self._masses(case, side, read)["mass"]
        return found

    def best(self, case: Case, side: Side = "new", read: Side = "new") -> FloatArray:
        """[B] log-probability of the likeliest concept item's SID, of the same pass as `mass`; -inf where none has a SID."""
        found: FloatArray = self._masses(case, side, read)["best"]
        return found

    def entropy(self, case: Case) -> FloatArray:
        """[B] entropy, in nats, of the first code after each history, which the current table encodes.

        Raises CheckpointError when the model gives no number.
        """
        from recerase.model.mass import first_entropy

        table, batch = self.model.table, self.world.config.batch
        key = self._key("entropy", case, _spelling(table))
        if key not in self.cache:

            def make(histories: Histories, observer: Observer) -> Arrays:
                made = first_entropy(self.model.recommender, table, histories, batch=batch, observer=observer)
                return {"entropy": made}

            self.cache[key] = self._in_blocks(key, case, table, batch, "entropy", make)["entropy"]
        found: FloatArray = self.cache[key]
        self._check_finite(found)
        return found

    def _masses(self, case: Case, side: Side, read: Side) -> Arrays:
        output = self.model.table if side == "new" else self.model.old_table
        encode = self.model.table if read == "new" else self.model.old_table
        key = self._key("mass", case, _spelling(encode), _spelling(output))
        if key not in self.cache:
            self.cache[key] = self._mass(key, case, encode, output, self.world.members)
        found: Arrays = self.cache[key]
        return found

    def mass_of(self, case: Case, items: BoolArray, output: SidTable | None = None) -> FloatArray:
        """[B] exact probability of generating a SID of one of `items` [N], as `output` (default: the current table) spells them.

        Zero where none has a SID. Raises as `mass`.
        """
        table = self.model.table
        output = table if output is None else output
        key = self._key("mass", case, _spelling(table), _spelling(output), _digest(items))
        if key not in self.cache:
            self.cache[key] = self._mass(key, case, table, output, items)
        found: FloatArray = self.cache[key]["mass"]
        return found

    def free(self, case: Case) -> Free:
        """Generations without a trie, histories encoded with the current table: rows [B, W, L], scores [B, W]."""
        from recerase.model.decode import Free, generate_free

        config, table = self.world.config, self.model.table
        ends = table.ragged or self.model.old_table.ragged  # eos ends the old SIDs, whatever the current ones are
        key = self._key("free", case, _spelling(table), *(["ends"] if ends else []))
        if key not in self.cache:

            def make(histories: Histories, observer: Observer) -> Arrays:
                made = generate_free(
                    self.model.recommender,
                    table,
                    histories,
                    beam=config.free_beam,
                    ends=ends,
                    batch=config.batch,
                    observer=observer,
                )
                return {"rows": made.rows, "scores": made.scores}

            self.cache[key] = Free(**self._in_blocks(key, case, table, config.batch, "free decoding", make))
        found: Free = self.cache[key]
        return found

    def _key(self, kind: str, case: Case, *parts: str) -> tuple[Hashable, ...]:
        weights = self.model.digest or id(self.model.recommender)
        return (kind, weights, case.name, self.model.reads_concept, *parts)

    def _decode(self, key: tuple[Hashable, ...], case: Case, table: SidTable, listed: BoolArray) -> Arrays:
        from recerase.model.decode import recommend
        from recerase.sid.trie import Trie

        config, k = self.world.config, max(self.world.config.k)
        if not listed.any():
            short = (len(case), k)
            return {"items": np.full(short, -1, np.int32), "scores": np.full(short, -np.inf, np.float32)}
        trie = Trie.build(table, listed)

        def make(histories: Histories, observer: Observer) -> Arrays:
            made = recommend(
                self.model.recommender,
                table,
                histories,
                k=k,
                beam=config.beam,
                trie=trie,
                batch=config.batch,
                observer=observer,
            )
            return {"items": made.items, "scores": made.scores}

        lists = self._in_blocks(key, case, table, config.batch, "recommend", make)
        if (empty := lists["items"][:, 0] < 0).any():
            raise _unreadable(self.model.role, int(empty.sum()))
        return lists

    def _mass(
        self, key: tuple[Hashable, ...], case: Case, encode: SidTable, output: SidTable, members: BoolArray
    ) -> Arrays:
        from recerase.model.mass import concept_mass

        members, batch = members & output.present, self.world.config.mass_batch
        if not members.any() or len(case) == 0:
            return {"mass": np.zeros(len(case)), "best": np.full(len(case), -np.inf)}

        def make(histories: Histories, observer: Observer) -> Arrays:
            made = concept_mass(
                self.model.recommender, encode, members, histories, output=output, batch=batch, observer=observer
            )
            return {"mass": made.mass, "best": made.best}

        masses = self._in_blocks(key, case, encode, batch, "concept mass", make)
        self._check_finite(masses["mass"])
        return masses

    def _check_finite(self, found: FloatArray) -> None:
        if not np.isfinite(found).all():
            raise _unreadable(self.model.role, int((~np.isfinite(found)).sum()))

    def _in_blocks(
        self,
        key: tuple[Hashable, ...],
        case: Case,
        table: SidTable,
        batch: int,
        task: str,
        make: Callable[[Histories, Observer], Arrays],
    ) -> Arrays:
        """What `make` gives for the case's histories, block by block; blocks that the state holds are not made again."""
        from recerase.model.decode import length_batches

        histories = self.histories(case)
        batches = list(length_batches(self.model.recommender, table, histories, batch))
        if not batches:
            return make(histories, self.observer)
        blocks = _blocks(batches)
        names = [_piece(key, int(first)) if self.model.digest else None for first in _firsts(len(batches))]
        whole: Arrays = {}

        def put(block: int, made: Arrays) -> None:
            for part, values in made.items():
                empty = np.empty((len(histories), *values.shape[1:]), values.dtype)
                whole.setdefault(part, empty)[blocks[block]] = values

        self.observer.start(task, len(histories))
        done = self._found(names, _digest(np.concatenate(blocks)) + _digest(histories.items))
        for block, made in done.items():
            put(block, made)
            self.observer.advance(task, len(blocks[block]))
        left = [block for block in range(len(blocks)) if block not in done]
        who = workers()
        size = 1 if who.size == 1 else who.size * _ROUND
        for part in (left[first : first + size] for first in range(0, len(left), size)):
            mine = [part[i] for i in who.mine(len(part))]
            read = who.gathered({i: make(histories.take(blocks[i]), _Within(self.observer)) for i in mine})
            for rank, found in enumerate(read):
                for block, made in found.items():
                    put(block, made)
                    self._keep(names[block], made)
                    if rank != who.rank:
                        self.observer.advance(task, len(blocks[block]))
        self.observer.finish(task)
        return whole

    def _found(self, names: list[str | None], digest: str) -> dict[int, Arrays]:
        """The blocks that the main process finds in the state, on every process. `digest` says what is read."""
        found = {block: made for block, name in enumerate(names) if (made := self._kept(name)) is not None}
        told, wanted = workers().told((found, digest))
        if digest != wanted:
            raise DataError(
                "The processes of this run read other histories.", "Give every machine the same inputs and versions."
            )
        kept: dict[int, Arrays] = told
        return kept

    def _kept(self, name: str | None) -> Arrays | None:
        from safetensors.numpy import load

        piece = self.state.read(name) if self.state is not None and name is not None else None
        return None if piece is None else load(piece)

    def _keep(self, name: str | None, made: Arrays) -> None:
        from safetensors.numpy import save

        if self.state is not None and name is not None:
            self.state.write(name, save({part: np.ascontiguousarray(values) for part, values in made.items()}))


class _Within:
    """An observer of one block: its steps count, its beginning and its end are not those of the task."""

    def __init__(self, outer: Observer) -> None:
        self.advance, self.note = outer.advance, outer.note

    def start(self, task: str, total: int | None) -> None: ...

    def finish(self, task: str) -> None: ...


def _firsts(n_batches: int) -> IntArray:
    """The first batch of every block; the number of processes has no part in it."""
    return np.arange(0, n_batches, max(1, min(BLOCK, n_batches // _SHARES)))


def _blocks(batches: list[IntArray]) -> list[IntArray]:
    """The rows of every block."""
    ends = [*_firsts(len(batches))[1:], len(batches)]
    return [np.concatenate(batches[first:end]) for first, end in zip(_firsts(len(batches)), ends, strict=True)]


def _piece(key: tuple[Hashable, ...], first: int) -> str:
    """The name of the block from batch `first` on: readable in front, and as unlike any other as its key."""
    return f"{key[0]}-{sha256_bytes(canonical_json([*key, first]))[:32]}"


def exposure(lists: IntArray, members: BoolArray, k: int) -> FloatArray:
    """[B] share of the first k slots of `lists` [B, >= k] that hold a concept item; an empty slot holds none."""
    head = lists[:, :k]
    shown: FloatArray = (members[head] & (head >= 0)).sum(axis=1) / k
    return shown


def _unreadable(role: str, n: int) -> CheckpointError:
    """An empty list or a mass that is no number would otherwise look like a concept that is gone."""
    return CheckpointError(
        f"The {role} model gives no finite probability after {n} histories.", "Check its weights for NaN or overflow."
    )


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _spelling(table: SidTable) -> str:
    """Digest of what a table spells: its codes, and which items it drops. Tables of one audit share items, order and schema."""
    return _digest(table.codes) if table.dropped is None else _digest(np.column_stack([table.codes, table.dropped]))
