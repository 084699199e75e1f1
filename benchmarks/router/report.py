"""Tables, goals and plot of the router's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, REFERENCE = "canaryctl", "vllm-router"
PROXIES = ("nginx", "envoy")  # plain proxies: they read no body
HEADINGS = {
    "added_p50_ms": "added p50, ms",
    "p99_ms": "p99, ms",
    "rate": "answers/s at 32",
    "p99_at_32_ms": "p99 at 32, ms",
    "cpu_us": "CPU us an answer",
}
# (case, figure, at most or at least so many times the reference's)
_RATIOS = (
    ("whole", "added_p50_ms", "most", 1.0),
    ("stream", "added_p50_ms", "most", 0.8),
    ("whole", "rate", "least", 1.0),
    ("stream", "rate", "least", 1.3),
)


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its figure; `reached` None: a router that it compares with was not measured."""
    found = []
    for case, figure, side, limit in _RATIOS:
        figures = result["figures"][case]
        says = f"{case}: {HEADINGS[figure]} at {side} {limit:g}x that of {REFERENCE}"
        goal: dict[str, Any] = {"says": says, "figure": None, "reached": None}
        if OURS in figures and REFERENCE in figures:
            ratio = figures[OURS][figure] / figures[REFERENCE][figure]
            goal |= {
                "figure": round(ratio, 2),
                "reached": ratio <= limit if side == "most" else ratio >= limit,
            }
        found.append(goal)
    for case, figures in result["figures"].items():
        others = [v["cpu_us"] for n, v in figures.items() if n not in (OURS, "direct", *PROXIES)]
        goal = {
            "says": f"{case}: the least CPU of all but {' and '.join(PROXIES)}",
            "figure": None,
            "reached": None,
        }
        if OURS in figures and others:
            goal |= {
                "figure": round(figures[OURS]["cpu_us"] / min(others), 2),
                "reached": figures[OURS]["cpu_us"] <= min(others),
            }
        found.append(goal)
    return found


def as_markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "# The router beside its peers",
        "",
        f"One run, {result['rounds']} alternating rounds of {result['seconds']:g} s each; two fake engines "
        "that answer at once. Clients, routers and engines share the machine: trust the ratios.",
    ]
    for case, figures in result["figures"].items():
        title = "A whole answer" if case == "whole" else "A stream of 20 events"
        lines += ["", f"## {title}", "| router | " + " | ".join(HEADINGS.values()) + " |"]
        lines.append("|---|" + "---|" * len(HEADINGS))
        for name, values in sorted(figures.items(), key=lambda item: item[1]["added_p50_ms"]):
            cells = [f"{values[figure]:g}" for figure in HEADINGS]
            lines.append(f"| {f'**{name}**' if name == OURS else name} | " + " | ".join(cells) + " |")
    lines += ["", "## Goals", "| goal | figure | reached |", "|---|---|---|"]
    words = {True: "yes", False: "**no**", None: "not measured"}
    for goal in result["goals"]:
        figure = "" if goal["figure"] is None else f"{goal['figure']:g}x"
        lines.append(f"| {goal['says']} | {figure} | {words[goal['reached']]} |")
    lines += ["", "## Settings"]
    lines += [f"- {name}: {text}" for name, text in result["settings"].items()]
    lines += [f"- {name}: not measured, {why}" for name, why in result["skipped"].items()]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars of added latency and of the rate, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6))
    for row, (case, figures) in enumerate(result["figures"].items()):
        for column, name in enumerate(("added_p50_ms", "rate")):
            shown = {n: v[name] for n, v in figures.items() if n != "direct"}
            names = sorted(shown, key=lambda n: shown[n], reverse=name == "added_p50_ms")
            colours = ["tab:orange" if n == OURS else "tab:blue" for n in names]
            axes[row][column].barh(names, [shown[n] for n in names], color=colours)
            axes[row][column].set_title(f"{case}: {HEADINGS[name]}")
            if name == "added_p50_ms":
                axes[row][column].set_xscale("log")
    figure.tight_layout()
    figure.savefig(path)
