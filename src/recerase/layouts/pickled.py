"""What a pickle says, as data: a machine for its opcodes that has nothing it could run.

The one decision: no unpickler is used, not even a restricted one. Opcodes are read by `pickletools` and build dicts, lists, tuples,
numbers and strings; a name of a class or function stays a name (`Global`), and calling one makes a `Stub` that says what was
called. Only tensors, sets, encoded bytes and OrderedDict are understood, by name, here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from recerase.layouts.pickle_values import MOST_DIMENSIONS, Global, Place, Storage, Stub, keyed, shown

_SMALL = 1 << 20


class _Mark:
    """Where a group begins on the stack."""


_MARK = _Mark()


def read_pickle(data: bytes) -> Any:
    """The value of a pickle, with `Place` for tensors, `Stub` for unknown objects and `Global` for names.

    Raises ValueError, or what else wrong data meets, when it is cut, malformed, or uses what only programs need.
    """
    machine = _Machine(max(_SMALL, 4 * len(data)))
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except LookupError as error:
        raise ValueError("its pickle takes what it never put there") from error
    raise ValueError("its pickle does not end")


class _Machine:
    """The stack and memo of one pickle; what its calls copy is limited by `budget`, since a short pickle can copy for ever."""

    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("its pickle ends a group that it never began")
        return value

    def group(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise LookupError
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _PLAIN:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _GROUPED:
            self.stack.append(_GROUPED[name](self.group()))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[keyed(argument)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
        elif name not in ("PROTO", "FRAME"):
            self._act(name, argument)

    def made(self, called: Any, args: Any, keywords: Any = None) -> Any:
        """What a call is taken to make."""
        if keywords is not None and not isinstance(keywords, dict):
            raise ValueError("its pickle calls with keywords that are no dict")
        self.budget -= sum(len(value) for value in (*args, keywords) if hasattr(value, "__len__"))
        if self.budget < 0:
            raise ValueError("its pickle copies the same values again and again")
        return _made(called, args, keywords)

    def _act(self, name: str, argument: Any) -> None:
        """Opcodes that name, make and fill objects."""
        if name == "GLOBAL":
            self.stack.append(Global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            called, module = self.pop(), self.pop()
            if not isinstance(called, str) or not isinstance(module, str):
                raise ValueError("its pickle names a class by what is no name")
            self.stack.append(Global(module, called))
        elif name == "BINPERSID":
            self.stack.append(_storage(self.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            args, called = self.pop(), self.pop()
            self.stack.append(self.made(called, args))
        elif name == "NEWOBJ_EX":
            keywords, args, called = self.pop(), self.pop(), self.pop()
            self.stack.append(self.made(called, args, keywords))
        elif name == "INST":
            self.stack.append(self.made(Global(*argument.split(" ", 1)), tuple(self.group())))
        elif name == "OBJ":
            called, *args = self.group()
            self.stack.append(self.made(called, tuple(args)))
        elif name == "BUILD":
            state = self.pop()
            _built(self.stack[-1], state)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [self.pop()] if name == "APPEND" else self.group()
            _extended(self.stack[-1], values, set if name == "ADDITEMS" else list)
        elif name in ("SETITEM", "SETITEMS"):
            flat = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.group()
            _filled(self.stack[-1], flat)
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self.group()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            raise ValueError(f"its pickle uses {name}, which plain data does not need")


_PLAIN = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE", "BINUNICODE8"),
)
"""Opcodes whose argument is the value."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_FRESH: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def _paired(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _dict_of(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs) if isinstance(pairs, dict) else {keyed(key): value for key, value in pairs}


def _set_of(values: Any = ()) -> set[Any]:
    return set(map(keyed, values))


_GROUPED: Mapping[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": lambda values: frozenset(map(keyed, values)),
    "DICT": lambda flat: _dict_of(_paired(flat)),
}


def _built(value: Any, state: Any) -> None:
    """An object gets its state: stubs keep it; what a dict or tensor is beside its values (`_metadata`) is let go."""
    if isinstance(value, Stub):
        value.state = state
    elif not isinstance(value, (dict, Place)):
        raise ValueError(f"its pickle sets the state of a {type(value).__name__}")


def _extended(value: Any, values: list[Any], kind: Any) -> None:
    if isinstance(value, Stub):
        value.elements += values
    elif not isinstance(value, kind):
        raise ValueError(f"its pickle appends to a {type(value).__name__}")
    elif isinstance(value, list):
        value.extend(values)
    else:
        value.update(map(keyed, values))


def _filled(value: Any, flat: list[Any]) -> None:
    pairs = _paired(flat)
    if isinstance(value, Stub):
        value.entries += pairs
    elif isinstance(value, dict):
        value.update(_dict_of(pairs))
    else:
        raise ValueError(f"its pickle sets entries of a {type(value).__name__}")


def _made(called: Any, args: Any, keywords: Any = None) -> Any:
    """What a call is taken to make: a value where the name is one of those known here, else a stub."""
    if not isinstance(called, Global) or not isinstance(args, tuple):
        raise ValueError("its pickle calls what is no class or function")
    known = _KNOWN.get((called.module, called.name))
    made = known(*args) if known is not None and not keywords else None
    return made if made is not None else Stub(called, args, dict(keywords or {}))


def _storage(said: Any) -> Storage:
    """What stands for memory in a file of torch: ("storage", class, key, device, elements)."""
    if not isinstance(said, tuple) or len(said) != 5 or said[0] != "storage" or not isinstance(said[1], Global):
        raise ValueError("its pickle refers to something else than a storage")
    _, kind, key, _, count = said
    known = kind.name.endswith("Storage") and kind.module in ("torch", "torch.storage")
    if not known or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError(f"its pickle refers to a storage {shown(kind)} of {shown(count)} elements")
    return Storage(kind.name, key, count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None, metadata: Any = None) -> Any:
    """A tensor, or None where it is more than a view of memory (say, a conjugate)."""
    if metadata:
        return None
    parts = (*shape, *strides)
    whole = isinstance(storage, Storage) and all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *parts))
    if not whole or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has the shape {shown(shape)}, strides {shown(strides)} and offset {shown(offset)}")
    if dtype is not None and not (isinstance(dtype, Global) and dtype.module == "torch"):
        raise ValueError(f"a tensor has the dtype {shown(dtype)}")
    return Place(storage, None if dtype is None else dtype.name, offset, tuple(shape), tuple(strides))


def _v2(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None) -> Any:
    return _tensor(storage, offset, shape, strides, None, metadata)


def _v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, meta: Any = None
) -> Any:
    return _tensor(storage, offset, shape, strides, dtype, meta)


def _parameter(value: Any, *rest: Any) -> Any:
    return value


def _of_type(called: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor of a subclass, or with attributes: as the tensor that it is."""
    rebuilt = isinstance(called, Global) and called.module == "torch._utils" and called.name.startswith("_rebuild_")
    made = _made(called, args) if rebuilt else None
    return made if isinstance(made, Place) else None


def _encoded(text: str, encoding: str) -> bytes | None:
    return text.encode("latin-1") if encoding in ("latin1", "latin-1") else None


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dict_of,
    ("collections", "defaultdict"): lambda factory=None: {},
    ("builtins", "set"): _set_of,
    ("__builtin__", "set"): _set_of,
    ("_codecs", "encode"): _encoded,
    ("torch", "Size"): lambda shape=(): tuple(shape),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _v2,
    ("torch._utils", "_rebuild_tensor_v3"): _v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
