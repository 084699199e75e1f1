"""Channels of one metric's gates: the columns they are derived from, their streams, and who bets on them.

For rollback, a gate bets on up to three channels (first requests; sessions; mirrored pairs), each with a part
of its alpha. Where requests without an answer have no value, a channel of requests decides only with a second
one, in which those count as harm on both arms (`Track.missing_as`). So do requests that their clients left,
for a percentile. Where a judge samples, so do answers that were drawn and have no score: harm must be shown
with and without either.

For promotion it bets on sessions for each margin that some stage must prove, on the units of that stage; and,
where units are sticky, on their first requests too, which alone speak once the arms' conversations are known
to differ in length (`TurnsBet`). Where values can be missing, a second channel counts what is missing.

Where units are sticky, a gate also bets on their later sessions (`units.py`), of each part in channels of its
own: for rollback once a unit and round (`rounds.py`), together with a test of everyone who was drawn
(`everyone.py`), for promotion once a unit and stage.

Whether a request failed or was rejected is known of each. Where it is not, the canary's may all be events
and stable's none: a proof holds even then (`Column` `worst`), by one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from evaluation.betting.bettors import loss_bettor
from evaluation.betting.estimates import Estimate, EventCounts, MeanGap, MedianRatio
from evaluation.betting.everyone import EveryoneChannel
from evaluation.betting.exceedance import Exceedance
from evaluation.betting.latency import ShapeProof, below_the_cut
from evaluation.betting.left import LeftProof, LeftShare
from evaluation.betting.rounds import RoundChannel
from evaluation.betting.scores import PairLoss
from evaluation.betting.tails import TailChannel, TailProof
from evaluation.betting.wealth import Bettor, Channel
from evaluation.metrics import CATALOGUE, UNANSWERED, Kind
from evaluation.policy.alpha_split import has_no_value_unanswered, log_limit
from evaluation.policy.gates import Gate, Proof
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream
from evaluation.units.later_blocks import PARTS
from evaluation.units.proof_bettors import (
    left_proof,
    left_share,
    limit_proof,
    mean_proof,
    rate_proof,
    recent_proof,
    score_proof,
    tail_proof,
)
from evaluation.units.released import Counted

Use = Literal["first", "session", "pairs", "later", "proof", "first proof", "later proof"]
ROLLBACK_USES = frozenset({"first", "session", "pairs", "later"})
#: What requests without a value count in a channel; "": they are not in it. "absent": units that stayed away
#: count as the worst.
#: "left": the channel is of requests that their clients left, or that failed, and needed where `LeftShare`
#: says so, whose channel ("alone") proves nothing. "late": those left late are slow. "recent": as in the
#: first one, at the percentile of recent values, where that of the others is held above it.
#: "near", "far": at what the percentile of many values may be (`tails.py`).
#: "unjudged": answers that were drawn for a score and have none count as harm, and not those that failed.
MissingAs = Literal[
    "", "harm", "unjudged", "mean", "absent", "left", "alone", "late", "recent", "near", "far"
]


@dataclass(frozen=True, slots=True)
class Track:
    """A channel of a gate and its use. `proof`: what it proves; None: it rolls back.

    `staged`: the stream whose current stage the proof is about; None: it continues through all stages.
    `missing_as`: what requests without a value count in this channel. A gate's channels of one use, part and
    proof must all reach their limits. `part`: of later sessions.
    """

    gate: Gate
    use: Use
    channel: Channel | EveryoneChannel
    proof: Proof | None = None
    staged: Stream | None = None
    missing_as: MissingAs = ""
    part: int = 0

    @property
    def left(self) -> LeftProof | None:
        """The proof on requests that their clients left, of which this is a channel; None: of none."""
        bettor = self.channel.bettor if isinstance(self.channel, Channel) else None
        return bettor if isinstance(bettor, LeftProof) else None

    @property
    def left_share(self) -> LeftShare | None:
        """What says whether the proof of its use on requests that were left is needed; None: it is a channel
        that decides something."""
        bettor = self.channel.bettor if isinstance(self.channel, Channel) else None
        return bettor if isinstance(bettor, LeftShare) else None

    @property
    def margin(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.margin

    @property
    def floor(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.floor


class Column:
    """Streams of one derived column: the first request of each draw, the sessions, and later sessions by
    part, for rollback and, once a unit and stage, for promotion."""

    def __init__(
        self,
        *,
        with_histogram: bool,
        estimate: Estimate | None = None,
        covariates: int = 0,
        missing: Counted | None = None,
        with_steps: bool = False,
    ) -> None:
        """missing: which requests without a value count in it; None: none. with_steps: its values may be
        recorded in steps, which its proofs take into account."""
        self.with_histogram = with_histogram
        self.missing = missing
        with_missing = missing is not None
        self.first = Stream(
            with_histogram=with_histogram,
            estimate=estimate,
            covariates=covariates,
            with_missing=with_missing,
            with_steps=with_steps,
        )
        self.units = Stream(
            with_histogram=with_histogram,
            covariates=covariates,
            with_missing=with_missing,
            with_steps=with_steps,
        )
        self.later = [Stream(with_histogram=with_histogram, with_missing=with_missing) for _ in range(PARTS)]
        self.later_proof = [
            Stream(with_histogram=with_histogram, with_missing=with_missing, with_steps=with_steps)
            for _ in range(PARTS)
        ]

    @property
    def __state__(self) -> tuple[str, ...]:
        used = [name for name in ("later", "later_proof") if getattr(self, name)[0].staged]
        return ("first", "units", *used)


class GateChannels:
    """The columns and channels of all gates of one metric, made from the policy.

    `columns`: fed with every row. `worst`: the one of the events of a proof, where one that is missing counts
    against it; None: there is none. `means`: the last ones, of values up to a cap, and where a gate on them
    rolls back, up to the wide one (`capped.py`).
    `with_missing`: those whose units include requests without a value, by which. `divisors`: of each
    exceedance, the tolerance, then the margins. `tail_columns`: by percentile gate. `pairs`:
    streams of mirrored answers, one a gate that reserves alpha for them
    (`pair_gates`).
    """

    def __init__(
        self, metric: str, policy: GatePolicy, proofs: Mapping[str, Sequence[Proof]], *, longest: float
    ) -> None:
        """proofs: by gate. longest: where values are censored."""
        gates = policy.gates_for(metric)
        self._metric = metric
        self._is_measured = CATALOGUE[metric].unit == "ms"  # counts and prices are exact
        self._longest = longest
        self._covariates = len(gates[0].covariates)
        self._restart_share = policy.restart_share
        self._failures = policy.tolerated_failures()
        self._proof_limit = log_limit(policy.promotion_alpha)
        self._min_proof_canary = policy.proof_canary
        self._session_s = policy.session_s
        self.tracks: list[Track] = []
        self.everyone: list[tuple[Gate, Column, list[EveryoneChannel]]] = []
        self.columns: list[Column] = []
        self.exceedances: list[Exceedance] = []
        self.divisors: list[tuple[float, ...]] = []
        self.worst: Column | None = None
        self.has_shape_columns = False
        self.means: list[Column] = []
        self.tail_columns: dict[str, Column] = {}
        self.with_missing: dict[Counted, Column] = {}
        sampling = gates[0].sampling
        self._is_sampled = min(sampling.stable, sampling.canary) < 1.0 or any(g.presence_gated for g in gates)
        self.pairs: list[Stream] = []
        self.pair_gates: list[Gate] = []
        for gate in gates:
            self._add_gate(gate, proofs.get(gate.name, ()))
        self.columns += self.means

    def _add_gate(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        match gate.kind:
            case Kind.RATE | Kind.SCORE:
                if not self.columns:
                    estimate = EventCounts() if gate.kind is Kind.RATE else MeanGap()
                    column = Column(with_histogram=False, estimate=estimate, covariates=self._covariates)
                    self.columns.append(column)
                if proofs and self.worst is None and self._metric in UNANSWERED and not self._is_sampled:
                    self.worst = Column(with_histogram=False, covariates=self._covariates)
                    self.columns.append(self.worst)
                self._add_bounded(gate, self.columns[0], proofs)
            case Kind.MEAN:
                while len(self.means) < (1 if gate.is_alarm else 2):
                    self.means.append(Column(with_histogram=False))
                self._add_bounded(gate, self.means[0 if gate.is_alarm else 1], proofs)
            case Kind.SHAPE:
                self._add_shape(gate, proofs)
            case Kind.PERCENTILE:
                self._add_percentile(gate, proofs)

    def _add_bounded(self, gate: Gate, column: Column, proofs: Sequence[Proof]) -> None:
        self._add_loss(gate, column)
        if gate.mirrored:
            lower = CATALOGUE[self._metric].lower_is_better
            self.pair_gates.append(gate)
            self.pairs.append(Stream(with_histogram=False))
            bettor = PairLoss(tolerance=gate.tolerance, lower_is_better=lower)
            self._rollback(gate, "pairs", self.pairs[-1], bettor)
        for proof in proofs:
            if gate.kind is Kind.SCORE:
                self._add_score_proof(gate, proof)
            elif gate.kind is Kind.MEAN:
                self._add_proof(gate, self.means[0], proof, mean_proof)
            else:
                self._add_rate_proof(gate, self.worst or column, proof)

    def _missing(self, which: Counted) -> Column:
        """The column in which such requests without a value count."""
        if which not in self.with_missing:
            self.with_missing[which] = Column(
                with_histogram=False, covariates=self._covariates, missing=which
            )
        return self.with_missing[which]

    def _add_shape(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        if not self.has_shape_columns:
            self.has_shape_columns = True
            self.columns[:0] = [
                Column(with_histogram=True, estimate=MedianRatio()),
                Column(with_histogram=True, with_steps=self._is_measured),
            ]
        waited, slowest = self.columns[:2]
        self._add_loss(gate, waited)
        for proof in proofs:
            self._add_proof(gate, slowest, proof, lambda p: ShapeProof(margin=p.margin))

    def _add_percentile(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        assert gate.percentile is not None
        highest = below_the_cut(self._longest, 1.0 + gate.tolerance)
        margins = tuple(proof.margin for proof in proofs)
        exceedance = Exceedance(
            percentile=gate.percentile,
            highest=highest,
            with_steps=self._is_measured,
            margins=margins,
            session_s=self._session_s,
        )
        self.exceedances.append(exceedance)
        self.divisors.append((1.0 + gate.tolerance, *margins))
        column = Column(with_histogram=False, estimate=EventCounts())
        with_left = Column(with_histogram=False)
        self.columns += [column, with_left]
        self.tail_columns[gate.name] = column
        self._add_loss(gate, column, with_left)
        for proof in proofs:
            known, late, recent, near, far = (
                Column(with_histogram=False, missing="failed") for _ in range(5)
            )
            left, alone = (Column(with_histogram=False) for _ in range(2))
            self.columns += [known, left, late, recent, alone, near, far]
            self._add_proof(gate, known, proof, partial(tail_proof, gate.percentile))
            self._add_proof(gate, left, proof, partial(left_proof, gate.percentile), "left")
            self._add_proof(gate, late, proof, partial(tail_proof, gate.percentile), "late")
            self._add_proof(gate, recent, proof, partial(recent_proof, gate.percentile), "recent")
            self._add_proof(gate, alone, proof, partial(left_share, gate.percentile), "alone")
            self._add_proof(gate, near, proof, limit_proof, "near")
            self._add_proof(gate, far, proof, limit_proof, "far")

    def _add_loss(self, gate: Gate, column: Column, with_left: Column | None = None) -> None:
        """The channels of first requests, of sessions and of later sessions that roll back. with_left: the
        column in which requests that their clients left count as harm; None: `column` says all of them."""
        ways: list[tuple[Column, MissingAs]] = [(column, "")]
        if with_left is not None:
            ways.append((with_left, "harm"))
        if has_no_value_unanswered(gate):
            if self._is_sampled:  # a better canary may answer, readably, what the judge cannot read of stable
                ways += [(self._missing("unjudged"), "unjudged"), (self._missing("sampled"), "harm")]
            ways.insert(1, (self._missing("failed"), "harm"))
        for of_way, missing_as in ways:
            bettor = partial(
                loss_bettor,
                gate.kind,
                tolerance=gate.tolerance,
                threshold=gate.threshold,
                longest=self._longest,
                failures=self._failures,
                missing_as_harm=missing_as in ("harm", "unjudged"),
            )
            covariates = self._covariates > 0
            firsts, sessions = (bettor(sessions=several, covariates=covariates) for several in (False, True))
            self._rollback(gate, "first", of_way.first, firsts, missing_as)
            self._rollback(gate, "session", of_way.units, sessions, missing_as)
            if not gate.is_alarm:
                for part, stream in enumerate(of_way.later):
                    channel = RoundChannel(bettor(sessions=True))
                    stream.staged.append(channel)
                    self.tracks.append(Track(gate, "later", channel, missing_as=missing_as, part=part))
        if not gate.is_alarm:
            of_all = [EveryoneChannel() for _ in range(PARTS)]
            self.everyone.append((gate, ways[-1][0], of_all))
            for part, test in enumerate(of_all):
                self.tracks.append(Track(gate, "later", test, missing_as="absent", part=part))

    def _rollback(
        self, gate: Gate, use: Use, stream: Stream, bettor: Bettor, missing_as: MissingAs = ""
    ) -> None:
        channel = Channel(bettor, limit=float("inf"), restart_share=self._restart_share)
        stream.channels.append(channel)
        self.tracks.append(Track(gate, use, channel, missing_as=missing_as))

    def _add_score_proof(self, gate: Gate, proof: Proof) -> None:
        """The channels that prove a margin of a score, both if requests without a score count 0 and if they
        count stable's mean. Where a judge samples, only those unscored answers that it is known to have
        drawn."""
        column = self._missing("sampled" if self._is_sampled else "all")
        for missing_as in ("harm", "mean"):
            bettor = partial(score_proof, missing_as == "mean", self._covariates > 0)
            later = partial(score_proof, missing_as == "mean", False)
            self._add_proof(gate, column, proof, bettor, missing_as, later=later)

    def _add_rate_proof(self, gate: Gate, column: Column, proof: Proof) -> None:
        """The channels that prove a margin of a rate; if answers without a value can be missing by other
        causes than sampling, also if each of those had the event."""
        self._add_proof(gate, column, proof, partial(rate_proof, 0.0))
        if has_no_value_unanswered(gate):
            which = self._missing("unjudged" if self._is_sampled else "unscored")
            self._add_proof(gate, which, proof, partial(rate_proof, 1.0), "harm")

    def _add_proof(
        self,
        gate: Gate,
        column: Column,
        proof: Proof,
        bettor: Callable[[Proof], Bettor],
        missing_as: MissingAs = "",
        *,
        later: Callable[[Proof], Bettor] | None = None,
    ) -> None:
        """The channels of sessions, of first requests and of later sessions that prove a margin.

        later: the bettor on later sessions; None: the same.
        """
        streams: list[tuple[Use, int, Stream]] = [
            ("proof", 0, column.units),
            ("first proof", 0, column.first),
        ]
        if not proof.is_whole:  # a coin may be bet once, and a unit has later sessions in each stage
            streams += [("later proof", part, stream) for part, stream in enumerate(column.later_proof)]
        for use, part, stream in streams:
            chosen = later if use == "later proof" and later is not None else bettor
            channel = self._proof_channel(chosen(proof))
            channel.is_idle = use != "proof"  # until units are known to be sticky
            (stream.channels if proof.is_whole else stream.staged).append(channel)
            staged = None if proof.is_whole else stream
            self.tracks.append(Track(gate, use, channel, proof, staged, missing_as, part))

    def _proof_channel(self, bettor: Bettor) -> Channel:
        limit, least = self._proof_limit, self._min_proof_canary
        if isinstance(bettor, TailProof):
            return TailChannel(bettor, limit=limit, min_canary=least)
        return Channel(bettor, limit=limit, min_canary=least)


def rollback_tracks(tracks: Sequence[Track], gate: Gate) -> dict[tuple[Use, int], list[Track]]:
    """A gate's channels for rollback, by use and part: those of one must all reach their limits."""
    out: dict[tuple[Use, int], list[Track]] = {}
    for track in tracks:
        if track.gate is gate and track.use in ROLLBACK_USES:
            out.setdefault((track.use, track.part), []).append(track)
    return out


def deciding(tracks: Sequence[Track]) -> list[Track]:
    """Those of a proof's channels that must reach their limits now: on requests that were left where these
    are many, and never what counts them."""
    many = {(t.use, t.part) for t in tracks if t.left_share is not None and t.left_share.is_needed}
    return [t for t in tracks if t.left_share is None and (t.left is None or (t.use, t.part) in many)]
