"""Spec of a version: a checkpoint and how to run it, or an external endpoint. Also of a judge that we run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from controller.spec.fields import Bytes, EngineValue, FieldError, Strict, is_stored, refuse
from serving.credentials import ENV_NAME, KeyReference
from serving.files.engine_arguments import OWNED_ARGUMENTS, argument_error, canonical_name
from serving.targets import Endpoint

_KEY_REMEDY = "for the key of an endpoint, name its variable or file: api_key_env or api_key_file"
# Keys of a version that are engine arguments, and so part of its fingerprint: a deploy changes them.
ENGINE_KEYS = (
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "dtype",
    "quantization",
    "max_model_len",
    "kv_cache_memory_bytes",
)


class VersionSpec(Strict):
    """A checkpoint directory and how to run it, or an external OpenAI-compatible endpoint."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="checkpoint directory (config.json, safetensors, tokenizer); with url: its name there",
    )
    url: str | None = Field(
        default=None,
        description="external endpoint: its base URL as written, such as https://api.example/v1beta/openai; "
        "a bare host serves at /v1",
    )
    api_key_env: str | None = Field(
        default=None, description="environment variable of `canaryctl up` that holds the endpoint's API key"
    )
    api_key_file: str | None = Field(
        default=None, min_length=1, description="file that holds the endpoint's API key"
    )
    replicas: int = Field(default=1, ge=1, le=1024)
    gpus: float | None = Field(
        default=None, ge=0, le=64, description="GPUs a replica; fractions share one; default: all it needs"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: str | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    kv_cache_memory_bytes: Bytes | None = Field(default=None, ge=1 << 20)
    engine: dict[str, EngineValue] = Field(
        default_factory=dict, description="further vLLM engine arguments; null removes an inherited one"
    )

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: object, info: ValidationInfo) -> object:
        """Without the keys that are null, as if they were not given; engine arguments by vLLM's own names."""
        if not isinstance(data, Mapping):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        if isinstance(engine := given.get("engine"), Mapping):
            given["engine"] = _own_names(engine, info)
        return given

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        refuse(self._errors(is_stored=is_stored(info)))
        return self

    def _errors(self, *, is_stored: bool) -> Iterator[ValueError]:
        """Each broken rule on several keys; of a stored version, only those that it was accepted under."""
        if self.model is None and self.url is None:
            yield ValueError("needs model (a checkpoint directory) or url (an endpoint); give one")
        yield from self._endpoint_errors()
        own = []
        for name, value in self.engine.items():
            if name in OWNED_ARGUMENTS:
                remedy = _KEY_REMEDY if name == "api_key" else "leave it out"
                own.append(FieldError(f"engine.{name}", f"is set by canaryctl itself; {remedy}"))
            elif name in type(self).model_fields:
                own.append(FieldError(f"engine.{name}", f"has its own key; write {name}: {value}"))
        yield from own
        if not is_stored:
            yield from self._engine_errors({error.path.partition(".")[2] for error in own})

    def _engine_errors(self, known: Collection[str]) -> Iterator[FieldError]:
        """What the engine would refuse, or what an endpoint would ignore; not asked of a stored version.

        known: the engine arguments that are reported already.
        """
        if self.is_external:
            ignored = (name for name in (*ENGINE_KEYS, "replicas", "gpus", "engine") if self._is_set(name))
            for name in ignored:
                text = "is for engines that canaryctl runs; an endpoint (url) has none of it: leave it out"
                yield FieldError(name, text)
            return
        for name, value in self.engine.items():
            if name not in known and (error := argument_error(name, value)):
                yield FieldError(f"engine.{name}", error)
        for name in ("quantization", "dtype"):
            value = getattr(self, name)
            if value is not None and (error := argument_error(name, value)):
                yield FieldError(name, error)
        size = self.tensor_parallel_size
        if self.gpus is not None and 0 < self.gpus < size and size > 1:
            yield FieldError(
                "gpus",
                f"{self.gpus:g} is too little for tensor_parallel_size {self.tensor_parallel_size}; "
                f"give {size}, or leave it out",
            )
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            yield FieldError("gpus", f"{self.gpus:g} is no whole number; shares of a GPU end at 1")

    def _is_set(self, name: str) -> bool:
        return bool(
            getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        )

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without its url, neither an endpoint's key nor its model's name can be judged."""
        gone = set(paths)
        return super().without(data, gone | ({"api_key_env", "api_key_file"} if "url" in gone else set()))

    def _endpoint_errors(self) -> Iterator[FieldError]:
        if self.url is None:
            for name in ("api_key_env", "api_key_file"):
                if getattr(self, name) is not None:
                    yield FieldError(name, "belongs to an endpoint; give its url, or leave it out")
            return
        try:
            Endpoint.parsed(self.url)
        except ValueError as exc:
            yield FieldError("url", str(exc))
        if self.model is not None and self.model.startswith(("/", "./", "../", "~")):
            text = f"{self.model} is a directory; with url it is the model's name there: give that one"
            yield FieldError("model", text)
        if self.api_key_env is not None and self.api_key_file is not None:
            yield FieldError("api_key_file", "and api_key_env are both given; keep one")
        # The value is not shown: someone may have written the key itself.
        if self.api_key_env is not None and not re.fullmatch(ENV_NAME, self.api_key_env):
            yield FieldError("api_key_env", "is no name of a variable; name the one that holds the key")

    @property
    def is_external(self) -> bool:
        return self.url is not None

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint directory; None for an external endpoint, whose `model` is a name."""
        return None if self.is_external else self.model

    @property
    def api_key(self) -> KeyReference | None:
        """Where the endpoint's API key is found; None: it needs none."""
        return KeyReference.from_names(self.api_key_env, self.api_key_file)

    def engine_arguments(self) -> dict[str, Any]:
        """vLLM's arguments by its own names (underscores); empty for an external endpoint."""
        if self.is_external:
            return {}
        named = {name: getattr(self, name) for name in ENGINE_KEYS}
        return {name: value for name, value in named.items() if value is not None} | self.extra_arguments

    @property
    def extra_arguments(self) -> dict[str, Any]:
        """`engine` by vLLM's own names."""
        return dict(self.engine)

    def located(self, base: Path) -> Self:
        """The version with its checkpoint directory and key file made absolute, relative to `base`."""
        paths = {"model": self.checkpoint, "api_key_file": self.api_key_file}
        return self.model_copy(
            update={
                name: str((base / Path(path).expanduser()).absolute())
                for name, path in paths.items()
                if path is not None
            }
        )

    def version(self) -> VersionSpec:
        """The version, without the fields of what names it (a service, a judge)."""
        names = VersionSpec.model_fields
        return VersionSpec.model_construct(**{name: getattr(self, name) for name in names})


def _own_names(engine: Mapping[Any, Any], info: ValidationInfo) -> dict[Any, Any]:
    named: dict[Any, Any] = {}
    for key, value in engine.items():
        name = canonical_name(key) if isinstance(key, str) else key
        if name in named and not is_stored(info):
            raise FieldError(f"engine.{name}", "is given twice, by two of its names; leave one out")
        named[name] = value
    return {name: value for name, value in named.items() if value is not None}
