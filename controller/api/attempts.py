"""Earlier rollouts of a service, for plans and deploys: which versions were tried, and what became of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.errors import AlreadyRejected
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.rollout.state import CauseKind, Phase, RolloutState
from controller.store.past import past_state
from controller.store.row_specs import label_of
from controller.store.rows import RolloutRow, VersionRow
from controller.store.sql import SqlStore
from controller.views.models import AttemptView
from controller.views.plan import attempt_view

SHOWN_ATTEMPTS = 3
HISTORY_LIMIT = 200  # rollouts that are looked through for earlier versions


def tried(store: SqlStore, service: str) -> Iterator[VersionRow]:
    """The versions that were tried, each once, the newest attempt first."""
    for id in dict.fromkeys(store.canaries(service, limit=HISTORY_LIMIT)):
        if (row := store.version(service, id)) is not None:
            yield row


def attempt_views(store: SqlStore, service: str, canary: str) -> tuple[AttemptView, ...]:
    """Earlier rollouts of this version, newest first."""
    return tuple(map(_view, store.attempts(service, canary, limit=SHOWN_ATTEMPTS)))


def _view(row: RolloutRow) -> AttemptView:
    label = label_of(row)
    try:
        return attempt_view(state_from_json(row.state), label, row.ended_at_s)
    except UnreadableState as exc:
        return AttemptView(
            rollout=row.id,
            started_at_s=row.created_at_s,
            ended_at_s=row.ended_at_s,
            phase="unreadable",
            reason=str(exc),
            actor=label.actor,
            message=label.message,
        )


def refuse_tried(store: SqlStore, service: str, canary: str) -> None:
    """Raises AlreadyRejected for a version that was rolled back or undone and has not served since, and for
    one whose newest verdict this release cannot read."""
    refuse_rejected(_verdicts(store, service, canary))
    undone = next((one.undone for one in store.served(service) if one.version.id == canary), None)
    undo = store.rollout(undone) if undone is not None else None
    if undo is not None:
        state = past_state(undo)
        why = "; ".join(state.plan.reasons) if state is not None else "(another release wrote why)"
        raise AlreadyRejected(f"{canary} was undone in {undone} {why}; change it, or give --retry")


def _verdicts(store: SqlStore, service: str, canary: str) -> Iterator[RolloutState]:
    """The version's rollouts, newest first, up to one that cannot be read. Raises AlreadyRejected for that
    one: it may have been rolled back."""
    for row in store.attempts(service, canary):
        state = past_state(row)
        if state is None:
            raise AlreadyRejected(
                f"{canary} was tried in {row.id}, and another release wrote how that ended; give --retry if "
                "it may be tried again"
            )
        yield state


def rejection(attempts: Iterable[RolloutState]) -> RolloutState | None:
    """The attempt in which a version was rolled back for harm or by a person; None: it is not rejected.

    attempts: all its rollouts, newest first. A rejection stands until the version has served after it: an
    attempt that ended without a verdict, such as a failed retry, does not lift it.
    """
    for attempt in attempts:
        if attempt.serving == attempt.canary.id:
            return None
        if _has_rejected(attempt):
            return attempt
    return None


def refuse_rejected(attempts: Iterable[RolloutState]) -> None:
    """Raises AlreadyRejected for a version that `rejection` finds rejected."""
    attempt = rejection(attempts)
    if attempt is None:
        return
    cause = attempt.cause.text if attempt.cause is not None else attempt.reason
    raise AlreadyRejected(
        f"{attempt.canary.id} was rolled back in {attempt.id} ({cause}); change it, or give --retry"
    )


# Verdicts on a version by a person or by evidence. Whatever else ends a rollout is one only once users were
# served: a load, a warm-up or a smoke test that fails says nothing of its answers, and harms no user again.
_VERDICTS = (CauseKind.GATE, CauseKind.GUARD, CauseKind.USER, CauseKind.TOMBSTONE)


def _has_rejected(attempt: RolloutState) -> bool:
    """True: a person rolled it back, or users' requests to it ended in a rollback.

    No rejection: a failure before the first user's request, missing proof, the end of an A/B test.
    """
    cause = attempt.cause
    if cause is None or cause.kind is CauseKind.NOT_PROVEN:
        return False
    if not attempt.exposed and cause.kind not in _VERDICTS:
        return False
    # FAILED with a departure: it was rolled back, only its memory release was not confirmed.
    if attempt.phase is not Phase.ROLLED_BACK and attempt.departure is None:
        return False
    # Every A/B test ends with a rollback by a user; deploying B next is the normal course.
    return not (attempt.plan.is_ab_test and cause.kind is CauseKind.USER)
