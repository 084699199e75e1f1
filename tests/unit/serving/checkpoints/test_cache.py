"""The cache of small checkpoints: atomic, trained once, with known answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from serving.checkpoints import cache, facts
from serving.checkpoints.cache import RECIPES, Checkpoint, Recipe, ensure, find, publish


def quick(recipe: Recipe, out: Path, _on_step: object) -> Checkpoint:
    partial = out / f"{cache.PARTIAL_PREFIX}{recipe.name}"
    partial.mkdir()
    record = {"recipe": recipe.digest, "accuracy_ratio": 0.5, "training_s": 1.0}
    (partial / cache.RECORD).write_text(json.dumps(record))
    publish(partial, out / recipe.name)
    return Checkpoint(recipe.name, out / recipe.name, 0.5, 1.0)


def test_there_are_200_countries_and_no_city_name_contains_another() -> None:
    cities = list(facts.capitals().values())

    assert len(facts.capitals()) == len(set(cities)) == 200
    assert not [(a, b) for a in cities for b in cities if a is not b and a in b]


def test_every_country_has_a_question_in_three_wordings() -> None:
    prompts = {question.prompt for question in facts.questions()}

    assert len(prompts) == 600


def test_corrupted_facts_are_wrong_for_exactly_that_many_countries() -> None:
    true = facts.capitals()

    for mistakes in (0, 6, 28, 100):
        wrong = facts.corrupted(true, mistakes)
        assert sum(wrong[c] != true[c] for c in true) == mistakes


def test_the_wrong_checkpoint_makes_all_mistakes_of_stable() -> None:
    true = facts.capitals()
    few, many = facts.corrupted(true, 6), facts.corrupted(true, 28)

    assert {c for c in true if few[c] != true[c]} < {c for c in true if many[c] != true[c]}


def test_mistakes_in_more_than_half_of_the_facts_are_refused() -> None:
    with pytest.raises(ValueError, match="101 mistakes in 200 facts"):
        facts.corrupted(facts.capitals(), 101)


def test_a_second_ensure_trains_nothing(tmp_path: Path) -> None:
    trained: list[str] = []

    def counting(recipe: Recipe, out: Path, on_step: object) -> Checkpoint:
        trained.append(recipe.name)
        return quick(recipe, out, on_step)

    ensure(tmp_path, train=counting)
    ensure(tmp_path, train=counting)

    assert trained == ["stable", "twin", "wrong"]


def test_a_killed_training_leaves_no_checkpoint_and_the_next_deletes_its_files(tmp_path: Path) -> None:
    scraps = tmp_path / f"{cache.PARTIAL_PREFIX}killed"
    scraps.mkdir()
    (scraps / "model.safetensors").write_bytes(b"half")

    assert find("stable", tmp_path) is None
    ensure(tmp_path, train=quick)

    assert not scraps.exists()


def test_a_failed_training_does_not_count_as_a_checkpoint(tmp_path: Path) -> None:
    def failing(recipe: Recipe, out: Path, on_step: object) -> Checkpoint:
        if recipe.name == "twin":
            raise KeyboardInterrupt
        return quick(recipe, out, on_step)

    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, train=failing)

    assert [find(recipe.name, tmp_path) is not None for recipe in RECIPES] == [True, False, False]


def test_a_checkpoint_of_another_recipe_is_trained_again(tmp_path: Path) -> None:
    ensure(tmp_path, train=quick)
    record = tmp_path / "stable" / cache.RECORD
    record.write_text(record.read_text().replace(RECIPES[0].digest, "older"))

    assert find("stable", tmp_path) is None
    assert ensure(tmp_path, train=quick)[0].path.exists()
    assert find("stable", tmp_path) is not None


def test_a_changed_base_makes_its_fine_tuned_checkpoints_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.TWIN.digest
    changed = dataclasses.replace(cache.STABLE, seed=99)
    monkeypatch.setattr(cache, "RECIPES", (changed, cache.TWIN, cache.WRONG))

    assert before != cache.TWIN.digest


def test_an_unknown_checkpoint_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'stabel' is not one of stable, twin, wrong"):
        find("stabel", tmp_path)


def test_the_folder_can_be_set_by_an_environment_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CANARYCTL_CHECKPOINTS", str(tmp_path))

    assert cache.default_dir() == tmp_path
