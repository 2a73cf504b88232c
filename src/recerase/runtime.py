"""Device, threads, seed and determinism, as one value that goes into every report.

The one decision here: nothing is set for the process. `pinned` sets threads and random state for a block and gives
them back, so that a caller who has its own torch program around recerase finds it as it left it.
"""

from __future__ import annotations

import ast
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import UsageError
from recerase.parallel import companions_here, local_processes, workers
from recerase.store import sha256_bytes
from recerase.types import Environment

if TYPE_CHECKING:
    import torch

_PACKAGES = ("numpy", "transformers", "safetensors", "faiss-cpu", "scikit-learn", "pyarrow")


@dataclass(frozen=True)
class RunConfig:
    """Where and how reproducibly a command computes; recorded in what it makes."""

    seed: int = 0
    threads: int | None = None
    """torch threads; None: all this process may use."""
    device: str = "auto"
    trust_pickle: bool = False
    dtype: str | None = None
    """float32, bfloat16 or float16, for models that are only read; None: as each is stored."""
    layout: str | None = None
    """Name of the layout of what content does not tell; None: what cannot be told is refused."""
    layout_options: tuple[tuple[str, str], ...] = ()
    """What the files of another tool do not say, name and value."""
    embeddings: str | Path | None = None
    """Item vectors to fit codebooks from, for a checkpoint of another tool that has none; None: the items' own words."""


def available_threads() -> int:
    """Cores this process may use: its CPU affinity, not the machine's size, divided among the processes of this run here.

    A launcher may have bound its processes to cores of their own already: then it has more of them than this one.
    """
    own = _cores(0)
    all_together = own if companions_here() or local_processes() == 1 else max(own, _cores(os.getppid()))
    return min(own, max(1, all_together // local_processes()))


def _cores(process: int) -> int:
    """How many cores a process may use (0: this one); 1 where it cannot be asked."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    try:
        return len(os.sched_getaffinity(process))
    except OSError:
        return 1


def choose_device(name: str = "auto") -> str:
    """`auto` -> cuda when there is one, else cpu; any other name is checked.

    Raises UsageError for what torch lacks, and for what several processes of this machine cannot share.
    """
    import torch

    _check_shared(name)
    workers().meet()  # each process takes its own of the devices here
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    remedy = "Pass --device cpu, cuda or auto."
    try:
        device = torch.device(name)
    except RuntimeError as error:  # torch would answer with the names of all hardware there is
        raise UsageError(f"There is no device {name!r}.", remedy) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"Device {name!r} cannot be used: {reason:.160}.", remedy) from error
    return name


def _check_shared(name: str) -> None:
    """Each of several processes has a GPU of its own, or none has."""
    import torch

    local = local_processes()
    if local > 1 and name.startswith("cuda:"):
        raise UsageError(f"{local} processes cannot share --device {name}.", "Pass --device cuda: each takes its own.")
    if companions_here() and name in ("auto", "cuda") and torch.cuda.is_available():
        devices = torch.cuda.device_count()
        if devices < local:
            raise UsageError(
                f"{local} processes were asked for, and there are {devices} GPUs.",
                f"Ask for at most {devices}, or pass --device cpu.",
            )


def choose_dtype(name: str | None, device: str = "cpu") -> torch.dtype | None:
    """`float32`, `bfloat16` or `float16` as a torch dtype; None stays None.

    Raises UsageError for another name, and for a dtype that the device does not compute in.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is None:
        return None
    if name not in known:
        raise UsageError(f"Unknown dtype {name!r:.40}.", f"Choose one of {', '.join(known)}.")
    try:
        some = torch.ones(2, 2, dtype=known[name], device=device)
        torch.softmax(some @ some, -1)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"Device {device!r} does not compute in {name}.", "Leave --dtype out.") from error
    return known[name]


def only_as_stored(run: RunConfig, command: str) -> None:
    """Raise UsageError for a dtype that a command which changes weights was given: what it publishes keeps the stored one."""
    if run.dtype is not None:
        raise UsageError(f"{command} keeps the dtype of the weights.", "Leave dtype out; audit the result with it.")


def environment(
    seed: int = 0, threads: int | None = None, device: str = "cpu", dtype: str = "float32", deterministic: bool = True
) -> Environment:
    """Where numbers are being made: versions, platform and the settings they depend on."""
    return Environment(
        recerase=_version("recerase"),
        python=platform.python_version(),
        torch=_version("torch"),
        platform=f"{platform.system()} {platform.machine()}",
        device=device,
        dtype=dtype,
        threads=threads or available_threads(),
        processes=workers().size,
        seed=seed,
        deterministic=deterministic,
        packages={name: _version(name) for name in _PACKAGES},
    )


@contextmanager
def pinned(threads: int | None = None, seed: int = 0) -> Iterator[int]:
    """Run a block on `threads` torch threads (None: all this process may use), from a known random state.

    Yields the thread count. Deterministic kernels are asked for; threads, random state (every device's) and the
    deterministic flag are given back at the end, also after an exception.
    """
    import torch

    count = threads or available_threads()
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fills = debugging.fill_uninitialized_memory
    with torch.random.fork_rng(), _steady_attention():
        torch.set_num_threads(count)
        torch.use_deterministic_algorithms(True, warn_only=True)
        debugging.fill_uninitialized_memory = False  # a debugging aid that costs a pass a tensor
        torch.manual_seed(seed)
        try:
            yield count
        finally:
            debugging.fill_uninitialized_memory = fills
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            torch.set_num_threads(before)


def _steady_attention() -> AbstractContextManager[None]:
    """On CUDA attention by plain products: the fused kernels' gradients differ from run to run, and only warn of it."""
    import torch

    if not torch.cuda.is_available():
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    steady: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return steady


def code_digest(*rooms: str) -> str:
    """sha256 over the package's own source files, names included: which code made a number.

    `rooms`: of these directories and files alone. Raises FileNotFoundError for one that there is not.
    """
    root = Path(__file__).parent
    sources: list[Path] = []
    for place in (root / room for room in rooms or ("",)):
        inside = (path for path in place.rglob("*") if path.suffix in (".py", ".toml", ".j2"))
        sources += inside if place.is_dir() else [place]
    sources.sort()
    named = b"".join(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0" for path in sources)
    return sha256_bytes(named)


def rooms_of(*modules: str) -> tuple[str, ...]:
    """The package's own files that `modules` (dotted, such as `recerase.erase.npo`) are made of, what they import included.

    Read off the import statements, wherever they stand, but for those that only a type checker follows; packages count as
    their `__init__.py`, but for the package itself, which is but names. For `code_digest`. Raises FileNotFoundError for a module
    that there is not.
    """
    root = Path(__file__).parent
    found: set[str] = set()
    waiting = [module.split(".")[1:] for module in modules]
    while waiting:
        parts = waiting.pop()
        place = root.joinpath(*parts)
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        room = path.relative_to(root).as_posix()
        if room not in found:
            found.add(room)
            waiting += [name for name in _imported(ast.parse(path.read_bytes()), root) if name]
    return tuple(sorted(found))


def _imported(tree: ast.AST, root: Path) -> Iterator[list[str]]:
    """Modules of the package that a syntax tree imports, as the parts of their names, and the packages that they are in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, *parts = name.split(".")
            place = root.joinpath(*parts)
            if package == root.name and (place.is_dir() or place.with_suffix(".py").is_file()):
                yield from (parts[:depth] for depth in range(1, len(parts) + 1))
        yield from _imported(node, root)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
