"""The benchmark of the router's own work."""

from __future__ import annotations

from benchmarks.router.in_process import ANSWERS, figures


async def test_every_kind_of_answer_passes_and_has_a_figure() -> None:
    found = await figures(rounds=1, number=3)

    signals = ("signals of 60 words", "signals of 3000 words")
    assert set(found) == {*ANSWERS, "arm of a key", "record", *signals}
    assert all(cpu_us > 0 for cpu_us in found.values())
