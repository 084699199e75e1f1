"""Keys in stable's own traffic before a rollout: conversations are judged whichever unit is drawn first."""

from __future__ import annotations

from controller.evidence.feed import Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.score_join import Joined
from serving.messages import RequestRecord
from tests.fakes.feed_maker import CONFIG, ROLLOUT, START_S, a_record, in_stage


def fed(*records: RequestRecord, feed: Feed | None = None) -> Feed:
    feed = feed or Feed(ROLLOUT, CONFIG)
    feed.follow(in_stage(), None, START_S)
    joined = [Joined(record, True, ()) for record in records]
    feed.on_page(JoinedPage(joined, (), START_S + 500.0, True, (), ()), START_S + 600.0)
    feed.status()
    return feed


def is_split_for_keys(feed: Feed) -> bool:
    assert feed._evaluator is not None
    return feed._evaluator.pipeline.is_sticky == 1


def of_stable(assigned_by: str) -> RequestRecord:
    return a_record(0, w=0.0, rollout="", assigned_by=assigned_by)


def test_alpha_is_split_for_conversations_that_stable_had_before_the_canary() -> None:
    assert is_split_for_keys(fed(of_stable("sticky"), a_record(1)))


def test_alpha_is_not_split_where_no_unit_had_a_key() -> None:
    assert not is_split_for_keys(fed(of_stable("request"), a_record(1)))


def test_keys_that_stable_had_are_known_after_a_restart() -> None:
    feed = fed(of_stable("sticky"))
    again = Feed.restore(ROLLOUT, CONFIG, feed.snapshot(0))

    assert is_split_for_keys(fed(a_record(1), feed=again))
