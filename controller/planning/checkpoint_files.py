"""Files of a checkpoint directory: which an engine may read, what they concern, and their digests.

Invariant: every file that is not known to be inert is hashed, by whatever name it comes, code always; a file
that nobody knows belongs to the group `files`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from controller.errors import BadCheckpoint, escaped, is_utf8
from controller.planning.tokenizer_files import is_tokenizer
from serving.files.regular import MAX_SETTINGS_BYTES, NotReadable, open_regular, read_regular
from serving.files.weights import WeightsError, require_present

Group: TypeAlias = Literal["config", "tokenizer", "template", "quantization", "processor", "code", "files"]

CACHED_FROM_BYTES = 1 << 20  # smaller files are read each time
MAX_FILES = 20_000
MAX_VISITED = 200_000  # files and folders that are looked at to find them
MAX_FILE_BYTES = 1 << 40  # the kernel's pretended files are larger
MAX_TOKENIZER_BYTES = 128 << 20  # those of the largest vocabularies have some 40 MB
CHUNK_BYTES = 1 << 20
# Read by name, each by its own rule (`fingerprint.py`).
PARSED = frozenset(
    {
        *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "chat_template.json", "chat_template.jinja"),
    }
)
# Of these folders an engine reads code and templates alone, if anything: the weights in another framework's
# format, a trainer's states and logs. Of any other folder every file counts.
_DATA_INERT_FOLDER = re.compile(
    r"original|onnx|openvino|coreml|metal|flax|runs|wandb|checkpoint-\d+|global_step\d+|__pycache__"
)
_TOOL_FOLDERS = {".git", ".cache", ".huggingface", ".ipynb_checkpoints", ".github", ".locks"}
# What macOS keeps of a file beside it, on a disk that is not its own, and in archives.
_MACOS = "._"
# Never inert, by whatever other name, in whatever folder.
_CODE = (".py", ".so", ".jinja", ".jinja2", ".j2")
_MISTRAL_WEIGHTS = re.compile(r"consolidated.*\.safetensors")  # vLLM looks for them in every folder
# What an engine can load as data: inert by its full name alone.
_DATA = (
    *(".json", ".jsonl", ".model", ".txt", ".tiktoken", ".bpe", ".vocab", ".yaml", ".yml", ".bin", ".pt"),
    *(".pth", ".ckpt", ".safetensors", ".gguf", ".npz", ".npy", ".pkl", ".msgpack", ".h5", ".onnx"),
)
_INERT_DATA = re.compile(
    r"(readme|licen[cs]e|notice|use_policy|usage_policy|changelog|citation|model_card|requirements)\.txt"
    r"|(training_args|optimizer|scheduler|scaler)\.(bin|pt|pth|safetensors)|rng_state(_\d+)?\.pth"
    r"|(model|pytorch_model|consolidated|diffusion_pytorch_model)(\.safetensors|\.bin)\.index\.json",
    re.IGNORECASE,
)
# A trainer's records, which no engine reads; the checkpoint's own code may.
_INERT_UNREAD = re.compile(
    r"(.*/)?(trainer_state|training|train_results|eval_results|all_results)\.json", re.IGNORECASE
)
_INERT = re.compile(
    r"(readme|licen[cs]e|notice|use_policy|usage_policy|changelog|citation|acknowledg|model_card)[\w-]*"
    r"|.*\.(md|rst|pdf|cff|bib|png|jpe?g|gif|svg|webp|bmp|ico|mp4|webm|html?|log|lock|sha256|ipynb)"
    r"|events\.out\.tfevents.*|latest",
    re.IGNORECASE,
)
_QUANTIZATION = re.compile(
    r"(quanti[sz]e_config|quant_config|hf_quant_config|.*quant[^/]*)\.json", re.IGNORECASE
)
_PROCESSOR = re.compile(r".*(processor|feature_extractor)[^/]*\.json", re.IGNORECASE)
# Of the group `files`, what an engine reads by name or kind, beside the model's tensors and tokenizer.
_READ = re.compile(
    r".*\.(safetensors|gguf|model|tiktoken|bpe|vocab|ya?ml|py|so|jinja2?|j2)"
    r"|(params|modules|config|adapter_.*|.*config.*|.*index|vocab.*|.*token.*|.*template.*)\.json|merges.*\.txt"
    r"|(pytorch_model|model|adapter_model|consolidated|mp_rank|diffusion_pytorch_model|.*-of-).*"
    r"\.(bin|pt|pth|ckpt|h5|msgpack|npz|onnx)",
    re.IGNORECASE,
)


def relevant_files(folder: Path) -> dict[str, Path]:
    """Every file that is not known to be inert, by its path within the folder. Raises BadCheckpoint."""
    found: dict[str, Path] = {}
    walked = list(islice(_walk(folder), MAX_FILES + 1))
    has_code = any(name.endswith((".py", ".so")) for name, _ in walked)
    if len(walked) > MAX_FILES:
        raise BadCheckpoint(
            f"checkpoint {folder} holds over {MAX_FILES:,} files; give the folder of one model"
        )
    for name, file in walked:
        if not has_code and _INERT_UNREAD.fullmatch(name):
            continue  # a trainer's record
        if not is_utf8(name):
            raise BadCheckpoint(
                f"checkpoint {escaped(str(folder))} holds {escaped(name)}, a name that is no UTF-8, which no "
                "plan or record can hold; rename the file"
            )
        require_regular(file)
        found[name] = file
    return dict(sorted(found.items()))


def require_regular(file: Path, *, limit: int = MAX_FILE_BYTES) -> None:
    """Raises BadCheckpoint for a missing file, an LFS pointer, a device, a pipe, or over `limit` bytes."""
    try:
        require_present(file)
        status = file.stat()
    except WeightsError as exc:
        raise BadCheckpoint(str(exc)) from exc
    except OSError as exc:
        raise BadCheckpoint(_unreadable(file, exc)) from exc
    if not stat.S_ISREG(status.st_mode):
        raise BadCheckpoint(f"{file} is not a regular file; remove it, or name a file")
    if status.st_size > limit:
        raise BadCheckpoint(f"{file} has {status.st_size:,} bytes, over {limit:,}; name a smaller one")


@dataclass(frozen=True, slots=True)
class Private:
    """A folder whose files no version may hold or name, nor link to. unless: a checkpoint within it."""

    folder: Path
    unless: Path | None = None

    def refuse(self, files: Iterable[Path]) -> None:
        """Raises BadCheckpoint for a file in the folder."""
        folder = self.folder.resolve()
        own = self.unless.resolve() if self.unless is not None else folder
        for file in files:
            real = file.resolve()
            is_own = own != folder and own.is_relative_to(folder) and real.is_relative_to(own)
            if real.is_relative_to(folder) and not is_own:
                raise BadCheckpoint(
                    f"{file} is in canaryctl's state folder, whose secrets no engine may read; name another"
                )


def group_of(name: str) -> Group:
    """What a file concerns, by its path within the folder."""
    base = name.rsplit("/", 1)[-1]
    if is_tokenizer(name):
        return "tokenizer"
    if base.startswith("chat_template") or "chat_template" in name.rsplit("/", 1)[0]:
        return "template"
    if base.endswith(".py"):
        return "code"
    if _QUANTIZATION.fullmatch(base):
        return "quantization"
    return "processor" if _PROCESSOR.fullmatch(base) else "files"


def may_be_read(name: str) -> bool:
    """Whether an engine may read a file of the group `files`, by its path. False: only code would."""
    return _READ.fullmatch(name.rsplit("/", 1)[-1]) is not None


def cached(file: Path, kind: str, cache: MutableMapping[str, str], compute: Callable[[Path], Any]) -> Any:
    """`compute(file)`, a JSON value; taken from the cache while the file is the one that was read.

    Raises BadCheckpoint when the file cannot be read.
    """
    return json.loads(cached_text(file, kind, cache, lambda one: json.dumps(compute(one))))


def cached_text(
    file: Path, kind: str, cache: MutableMapping[str, str], compute: Callable[[Path], str]
) -> str:
    """As `cached`, of a value that is text of JSON already, and stays so."""
    try:
        key, size = _identity(file, kind)
        if key in cache:
            return cache[key]
        value = compute(file)
        is_unchanged = _identity(file, kind)[0] == key
    except OSError as exc:
        raise BadCheckpoint(_unreadable(file, exc)) from exc
    if is_unchanged and (size >= CACHED_FROM_BYTES or kind == ""):
        cache[key] = value
    return value


def _identity(file: Path, kind: str) -> tuple[str, int]:
    """(key of the file's content in the cache, its size in bytes).

    The modification time can be set, and `cp -p`, tar and image layers do set it. The change time cannot: a
    file that is written over gets a new one, a file that takes the place of another has another inode. On NFS
    both are the server's, up to a minute late (`acregmax`); a mount under another device number, or a move
    within the file system, costs one more reading. FUSE mounts of object stores may make up the inode, and
    give the modification time, which is that of the upload there, as the change time.
    """
    found = file.stat()
    times = f"{found.st_mtime_ns}|{found.st_ctime_ns}"
    return f"{kind}{file.resolve()}|{times}|{found.st_size}|{found.st_dev}:{found.st_ino}", found.st_size


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex; of as many as it had when it was opened. Raises OSError."""
    hashed = hashlib.sha256()
    with open_regular(file) as stream:
        remaining = os.fstat(stream.fileno()).st_size
        while remaining > 0 and (chunk := stream.read(min(CHUNK_BYTES, remaining))):
            hashed.update(chunk)
            remaining -= len(chunk)
    return hashed.hexdigest()


def read_object(file: Path | None) -> dict[str, Any]:
    """The JSON object in a file of settings; empty without one. Raises BadCheckpoint."""
    return {} if file is None else object_of(file, _settings(file))


def read_text(file: Path) -> str:
    """The text of a file of settings. Raises BadCheckpoint."""
    return _text(file, _settings(file)).replace("\r\n", "\n").replace("\r", "\n")


def object_of(file: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in a file's bytes. Raises BadCheckpoint."""
    try:
        value = json.loads(_text(file, data))
    except (ValueError, RecursionError) as exc:
        raise BadCheckpoint(f"{file} is not JSON ({exc}); copy the checkpoint again") from exc
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{file} is not a JSON object; copy the checkpoint again")
    return value


def _settings(file: Path) -> bytes:
    try:
        return read_regular(file, limit=MAX_SETTINGS_BYTES)
    except NotReadable as exc:
        raise BadCheckpoint(str(exc)) from exc
    except OSError as exc:
        raise BadCheckpoint(
            f"{file} cannot be read ({exc}); check its permissions, or copy it again"
        ) from exc


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadCheckpoint(
            f"{file} cannot be read ({exc}); check its permissions, or copy it again"
        ) from exc


def digest(value: object) -> str:
    """SHA-256 of a JSON value, in hex; the order of keys has no effect."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unreadable(file: Path, exc: OSError) -> str:
    if isinstance(exc, NotReadable):
        return str(exc)
    return f"{file} cannot be read ({exc.strerror}); check its permissions"


def _is_inert(name: str) -> bool:
    """Whether no engine reads a file of this path within the folder, whatever it holds."""
    *folders, base = name.split("/")
    if base.startswith(_MACOS):
        return True
    suffix = Path(base.lower()).suffix
    if suffix in _CODE or _MISTRAL_WEIGHTS.fullmatch(base):
        return False
    if any(_DATA_INERT_FOLDER.fullmatch(folder) for folder in folders):
        return True
    if suffix in _DATA:
        return _INERT_DATA.fullmatch(base) is not None
    return base.startswith(".") or _INERT.fullmatch(base) is not None


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path within the folder, file) of all that is not inert; linked folders are followed, not in a loop."""

    def refuse(exc: OSError) -> None:
        raise BadCheckpoint(f"{exc.filename} cannot be read ({exc.strerror}); check its permissions") from exc

    above: dict[str, tuple[str, ...]] = {}  # the real paths over a folder, by its path
    visited = 0
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        visited += 1 + len(names)
        if visited > MAX_VISITED:
            raise BadCheckpoint(
                f"{folder} holds over {MAX_VISITED:,} files and folders; give the folder of one model"
            )
        real, over = os.path.realpath(parent), above.get(os.path.dirname(parent), ())
        if real in over:
            folders.clear()
            continue
        above[parent] = (*over, real)
        folders[:] = sorted(one for one in folders if one not in _TOOL_FOLDERS)
        for base in sorted(names):
            file = Path(parent) / base
            name = file.relative_to(folder).as_posix()
            if not _is_inert(name):
                yield name, file
