"""How the loss of an answer would be covered: by continuing it, by holding it back, or not at all. Pure.

An answer can be continued when the request can (`continuable.py`), its engine names the ids of its tokens,
and stable has the same vocabulary as far as is known: an engine names its digest in the head of every answer.
An external endpoint names no ids and continues nothing: with one on either arm no answer can be continued.
"""

from __future__ import annotations

from serving.engine_headers import NO_TOKENS
from serving.messages import FULL_BP, Arm
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.continuable import BODY_LIMIT, PATHS
from serving.router.exchange.context import RouterContext, Start, current_stable
from serving.router.exchange.continuation import Continuation, tokens_header
from serving.router.exchange.takeover import wanted_usage
from serving.router.headers import RawHeaders, content_type
from serving.targets import TEXT_PATHS


class Cover:
    """Of the current answer of one request."""

    __slots__ = ("_context", "_is_canary", "_is_unfit", "_start", "digest", "limit")

    def __init__(self, context: RouterContext, start: Start) -> None:
        self._context = context
        self._start = start
        self._is_canary = self._is_unfit = False
        self.digest: str | None = None  # of its vocabulary; None: the engine names no ids
        self.limit: int | None = None  # the most tokens that it may have; None: not known

    def begin(
        self, arm: Arm | None, headers: RawHeaders, *, is_canary: bool
    ) -> tuple[AnswerScan, bool, bool | None]:
        """For the head of an answer: its scan, whether it is held until it is whole, and is covered."""
        kind = content_type(headers)
        self._is_unfit, self._is_canary = self._read(arm, headers), is_canary
        is_ours = arm is not None and arm.has_fence
        scan = self._start.scan(kind, is_ours=is_ours)
        start, has_text = self._start, self._start.is_eligible and scan.path in TEXT_PATHS
        # By what is known at the draw, for all attempts alike.
        if has_text and self._context.unread.wants(is_compared=start.is_compared, now_s=start.now_s):
            scan.excerpt = AnswerExcerpt(scan.path)
        return scan, *self.of(scan)

    def of(self, scan: AnswerScan) -> tuple[bool, bool | None]:
        """Whether the answer is held until it is whole, and is covered; anew when it turns out a stream."""
        if not self._is_canary:
            return False, None
        if not scan.is_stream:
            return False, True
        may_hold = self._may_hold and not self._context.held.is_spent
        is_held = may_hold and self._is_lost(is_unfit=self._is_unfit)
        return is_held, is_held or self.can_continue

    def _read(self, arm: Arm | None, headers: RawHeaders) -> bool:
        """Read the head of an answer; True: its engine says that it cannot be continued."""
        self.digest = self.limit = None
        if arm is None or not arm.has_fence:
            return False
        digest, self.limit = tokens_header(headers)
        if digest == NO_TOKENS:
            self._context.unfit.add(arm.version)
            return True
        self.digest = self._remembered(arm, digest)
        return False

    def learn(self, arm: Arm, headers: RawHeaders) -> None:
        """Remember an engine's vocabulary; the current answer stays as it is."""
        self._remembered(arm, tokens_header(headers)[0])

    def _remembered(self, arm: Arm, digest: str | None) -> str | None:
        if digest is None or digest == NO_TOKENS:
            return None
        self._context.vocabularies[arm.version] = digest
        return digest

    @property
    def _may_hold(self) -> bool:
        """True while the table lets answers be held back until they are whole."""
        table = self._start.table
        return table.late_commit == "hold" and table.weight_bp < FULL_BP

    def _is_lost(self, *, is_unfit: bool) -> bool:
        """True for an answer that nobody could continue. is_unfit: by an engine's word.

        With an endpoint that canaryctl does not run on either arm, by the table of the draw, nobody could.
        """
        if is_unfit or not self._start.is_continuable:
            return True
        stable, canary = self._start.table.stable, self._start.table.canary
        return (stable is not None and stable.external) or (canary is not None and canary.external)

    @property
    def may_be_held(self) -> bool:
        """True for a drawn stream that is held back if it is the canary's; the same on either arm."""
        start = self._start
        if not (start.streams and 0.0 < start.assignment.w < 1.0 and self._may_hold):
            return False
        is_unfit = not self._context.unfit.isdisjoint(arm.version for arm in start.table.arms)
        return self._is_lost(is_unfit=is_unfit)

    def continuation(self, scan: AnswerScan) -> Continuation:
        """The continuation of the current answer by another engine."""
        request = self._start.request
        return Continuation(request.path, bytes(request.body), scan, self.digest or "", self.limit)

    def lacks_usage(self, scan: AnswerScan) -> bool:
        """True for a stream without the usage that its request asks for in an event of its own."""
        request = self._start.request
        may_ask = request.path in PATHS and not scan.has_usage_event
        is_short = len(request.body) <= BODY_LIMIT  # of another nothing is read here
        return may_ask and is_short and wanted_usage(bytes(request.body)) != "no"

    @property
    def can_continue(self) -> bool:
        """False when stable is known to be unable to continue the current answer."""
        if self.digest is None or not self._start.is_continuable:
            return False
        stable = current_stable(self._context, self._start.table)
        if stable is None or not stable.has_fence:
            return False
        return self._context.vocabularies.get(stable.version, self.digest) == self.digest
