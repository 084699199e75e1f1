"""Look-ups of bearer tokens: what they wait for, and who waits for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from controller.api.bearer_auth import MAX_UNKNOWN, UNKNOWN_S, TokenLookups
from controller.auth import Identity, Role

ADMIN, ADA = Identity("admin", Role.ADMIN), Identity("ada", Role.OPERATOR)
LIMIT_S = 60.0


class Database:
    """Tokens in a database, which may stand still."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked: list[str] = []
        self.known: dict[str, Identity] = {"ada": ADA}

    def identity(self, digest: str) -> Identity | None:
        self.asked.append(digest)
        assert self.answers.wait(LIMIT_S)
        return self.known.get(digest)


@pytest.mark.slow
@pytest.mark.parametrize("is_urgent", [False, True])
async def test_the_token_of_the_file_never_waits_for_the_database(is_urgent: bool) -> None:
    database = Database()
    lookups = TokenLookups(database, held=lambda digest: ADMIN if digest == "admin" else None)
    database.answers.clear()
    strangers = [
        asyncio.create_task(lookups.identity(f"made up {count}", is_urgent=is_urgent)) for count in range(100)
    ]
    try:
        found = await asyncio.wait_for(lookups.identity("admin", is_urgent=is_urgent), LIMIT_S)
    finally:
        database.answers.set()

    assert found == ADMIN
    assert set(await asyncio.gather(*strangers)) == {None}


async def test_a_rollback_does_not_wait_for_look_ups_of_other_requests() -> None:
    """150 requests with a made-up token made a rollback wait 38 s for its own look-up."""
    slow, quick = threading.Event(), Identity("ada", Role.OPERATOR)

    class Both:
        def identity(self, digest: str) -> Identity | None:
            if digest == "ada":
                return quick
            assert slow.wait(LIMIT_S)
            return None

    lookups = TokenLookups(Both())
    strangers = [asyncio.create_task(lookups.identity(f"made up {count}")) for count in range(150)]
    await asyncio.sleep(0)
    try:
        found = await asyncio.wait_for(lookups.identity("ada", is_urgent=True), LIMIT_S)
    finally:
        slow.set()

    assert found == quick
    await asyncio.gather(*strangers)


async def test_an_unknown_token_is_looked_up_once_in_a_while() -> None:
    database, now_s = Database(), [100.0]
    lookups = TokenLookups(database, clock=lambda: now_s[0])
    for _ in range(5):
        assert await lookups.identity("bob") is None
    assert database.asked == ["bob"]

    database.known["bob"] = ADA
    now_s[0] += UNKNOWN_S

    assert await lookups.identity("bob") == ADA
    assert await lookups.identity("ada") == ADA
    del database.known["ada"]
    assert await lookups.identity("ada") is None  # what is known is asked for each time


@pytest.mark.slow
async def test_few_unknown_tokens_are_remembered() -> None:
    database = Database()
    lookups = TokenLookups(database, clock=lambda: 1.0)
    for count in range(MAX_UNKNOWN + 1):
        await lookups.identity(f"made up {count}")

    assert len(lookups._unknown) == MAX_UNKNOWN


async def test_a_rollback_does_not_wait_for_other_requests_to_look_into_the_file_either() -> None:
    slow = threading.Event()

    def held(digest: str) -> Identity | None:
        assert digest == "admin" or slow.wait(LIMIT_S)
        return ADMIN if digest == "admin" else None

    lookups = TokenLookups(Database(), held=held)
    strangers = [asyncio.create_task(lookups.identity(f"made up {count}")) for count in range(150)]
    await asyncio.sleep(0)
    asked = asyncio.create_task(lookups.identity("admin", is_urgent=True))
    try:
        done, _ = await asyncio.wait([asked], timeout=LIMIT_S)
    finally:
        slow.set()

    assert asked in done
    await asyncio.gather(asked, *strangers)
