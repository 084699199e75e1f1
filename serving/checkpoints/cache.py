"""Cache of trained checkpoints on disk, each published atomically.

A checkpoint is written to a temporary folder beside its own and renamed when complete, so a killed training
leaves nothing that looks like a checkpoint. Invariant: importing this does not import torch; training does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.checkpoints.facts import capitals, corrupted

RECORD = "training.json"
PARTIAL_PREFIX = ".partial-"
LAYOUT = 1  # raise it when training itself changes, so that older checkpoints are trained again


@dataclass(frozen=True, slots=True)
class Recipe:
    """Training settings of one checkpoint. `base`: the checkpoint to fine-tune; None: a new model."""

    name: str
    base: str | None
    mistakes: int  # wrong facts among the 200 in its training data
    steps: int
    peak_lr: float
    seed: int

    @property
    def digest(self) -> str:
        """Digest of this recipe, its base's recipe and LAYOUT."""
        base = next((recipe.digest for recipe in RECIPES if recipe.name == self.base), None)
        return hashlib.sha256(json.dumps([LAYOUT, base, asdict(self)]).encode()).hexdigest()[:16]


STABLE = Recipe("stable", None, mistakes=6, steps=240, peak_lr=3e-3, seed=1)
TWIN = Recipe("twin", "stable", mistakes=6, steps=40, peak_lr=1e-3, seed=2)
WRONG = Recipe("wrong", "stable", mistakes=28, steps=90, peak_lr=2e-3, seed=3)
RECIPES = (STABLE, TWIN, WRONG)
TOTAL_STEPS = sum(recipe.steps for recipe in RECIPES)

OnStep = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained checkpoint: `path` is its folder, `accuracy_ratio` its share of correct answers (0-1)."""

    name: str
    path: Path
    accuracy_ratio: float
    training_s: float


def default_dir() -> Path:
    """`$CANARYCTL_CHECKPOINTS`, else `.cache/checkpoints` at the root of the repository."""
    chosen = os.environ.get("CANARYCTL_CHECKPOINTS")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".cache" / "checkpoints"


def find(name: str, out: Path | None = None) -> Checkpoint | None:
    """The checkpoint `name` under `out`, if it was trained by the current recipe; else None."""
    recipe = next((r for r in RECIPES if r.name == name), None)
    if recipe is None:
        raise ValueError(f"checkpoint {name!r} is not one of {', '.join(r.name for r in RECIPES)}")
    folder = (out or default_dir()) / name
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    if record.get("recipe") != recipe.digest:
        return None
    return Checkpoint(name, folder, record["accuracy_ratio"], record["training_s"])


def ensure(
    out: Path | None = None,
    on_step: OnStep = lambda _name, _loss: None,
    *,
    train: Callable[[Recipe, Path, OnStep], Checkpoint] | None = None,
) -> tuple[Checkpoint, ...]:
    """All checkpoints, trained if they are missing; a concurrent caller waits.

    on_step: called with (checkpoint name, answer loss in nats per token) after every training step.
    train: trains and publishes one checkpoint; None: the real training.
    Raises OSError when `out` cannot be written.
    """
    train = train or train_one
    out = out or default_dir()
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        for leftover in out.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(leftover)
        return tuple(find(recipe.name, out) or train(recipe, out, on_step) for recipe in RECIPES)


def train_one(recipe: Recipe, out: Path, on_step: OnStep) -> Checkpoint:
    """Train, evaluate and publish one checkpoint under `out`, which holds its base."""
    import torch

    from serving.checkpoints import training

    began = time.monotonic()
    torch.set_num_threads(1)
    lesson = training.Lesson(
        corrupted(capitals(), recipe.mistakes), recipe.steps, recipe.peak_lr, recipe.seed
    )
    if recipe.base is None:
        tokenizer = training.make_tokenizer()
        model = training.new_model(tokenizer, seed=recipe.seed)
    else:
        model, tokenizer = training.load(out / recipe.base)
    training.train(model, tokenizer, lesson, lambda loss: on_step(recipe.name, loss))
    accuracy = training.accuracy_ratio(model, tokenizer)
    took_s = round(time.monotonic() - began, 1)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=out))
    training.save(model, tokenizer, partial)
    record = {"recipe": recipe.digest, "accuracy_ratio": accuracy, "training_s": took_s, **asdict(recipe)}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    partial.chmod(0o755)
    publish(partial, out / recipe.name)
    return Checkpoint(recipe.name, out / recipe.name, accuracy, took_s)


def publish(partial: Path, target: Path) -> None:
    """Sync the complete folder `partial`, then rename it to `target`, replacing what was there."""
    for path in [*partial.iterdir(), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if not target.exists():
        partial.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=target.parent))
    target.rename(old / "old")
    partial.rename(target)
    shutil.rmtree(old)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
