"""Channels of one metric's gates: the columns they are derived from, their streams, and who bets on them.

For rollback, a gate bets on up to three channels (first requests; sessions; mirrored pairs), each with a part
of its alpha. For promotion it bets on sessions for each margin that some stage must prove, on the units of
that stage; and, where units are sticky, on their first requests too, which alone speak once the arms'
conversations are known to differ in length (`TurnsBet`).

Where units are sticky, a gate also bets on their later sessions (`units.py`): for rollback once a unit and
round (`rounds.py`), for promotion once a unit and stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from evaluation.betting.bettors import loss_bettor
from evaluation.betting.estimates import Estimate, EventCounts, MeanGap, MedianRatio
from evaluation.betting.latency import Exceedance, ShapeProof, below_the_cut
from evaluation.betting.rates import RateProof
from evaluation.betting.rounds import RoundChannel
from evaluation.betting.scores import PairLoss, ScoreProof
from evaluation.betting.tails import TailChannel, TailProof
from evaluation.betting.wealth import Bettor, Channel
from evaluation.metrics import CATALOGUE, Kind
from evaluation.policy.alpha_split import log_limit
from evaluation.policy.gates import Gate, Proof
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream

Use = Literal["first", "session", "pairs", "later", "proof", "first proof", "later proof"]
ROLLBACK_USES = frozenset({"first", "session", "pairs", "later"})


@dataclass(frozen=True, slots=True)
class Track:
    """A channel of a gate and its use. `proof`: what it proves; None: it rolls back.

    `staged`: the stream whose current stage the proof is about; None: it continues through all stages.
    `failed_as`: the score of requests without an answer in this channel; None: they have their own rule.
    """

    gate: Gate
    use: Use
    channel: Channel
    proof: Proof | None = None
    staged: Stream | None = None
    failed_as: float | None = None

    @property
    def margin(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.margin

    @property
    def floor(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.floor


class Column:
    """Streams of one derived column: the first request of each draw, the sessions, and later sessions, for
    rollback and, once a unit and stage, for promotion."""

    def __init__(
        self, *, with_histogram: bool, estimate: Estimate | None = None, covariates: int = 0
    ) -> None:
        self.with_histogram = with_histogram
        self.is_tail_proof = False  # whose blocks say which requests had no answer
        self.first = Stream(with_histogram=with_histogram, estimate=estimate, covariates=covariates)
        self.units = Stream(with_histogram=with_histogram, covariates=covariates)
        self.later = Stream(with_histogram=with_histogram)
        self.later_proof = Stream(with_histogram=with_histogram)

    @property
    def __state__(self) -> tuple[str, ...]:
        used = [name for name in ("later", "later_proof") if getattr(self, name).staged]
        return ("first", "units", *used)


class GateChannels:
    """The columns and channels of all gates of one metric, made from the policy.

    `columns`: fed with every row. `score_proofs`: one where scores are proven, whose units include requests
    without an answer. `divisors`: of each exceedance, the tolerance, then the margins. `tail_columns`: by
    percentile gate. `pairs`: streams of mirrored answers, one a gate that reserves alpha for them
    (`pair_gates`).
    """

    def __init__(
        self, metric: str, policy: GatePolicy, proofs: Mapping[str, Sequence[Proof]], *, longest: float
    ) -> None:
        """proofs: by gate. longest: where values are censored."""
        gates = policy.gates_for(metric)
        self._metric = metric
        self._longest = longest
        self._covariates = len(gates[0].covariates)
        self._restart_share = policy.restart_share
        self._failures = policy.tolerated_failures()
        self._proof_limit = log_limit(policy.promotion_alpha)
        self._min_proof_canary = policy.proof_canary
        self.tracks: list[Track] = []
        self.columns: list[Column] = []
        self.exceedances: list[Exceedance] = []
        self.divisors: list[tuple[float, ...]] = []
        self.has_shape_columns = False
        self.tail_columns: dict[str, Column] = {}
        self.score_proofs: list[Column] = []
        self.pairs: list[Stream] = []
        self.pair_gates: list[Gate] = []
        for gate in gates:
            self._add_gate(gate, proofs.get(gate.name, ()))

    def _add_gate(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        match gate.kind:
            case Kind.RATE | Kind.SCORE:
                if not self.columns:
                    estimate = EventCounts() if gate.kind is Kind.RATE else MeanGap()
                    column = Column(with_histogram=False, estimate=estimate, covariates=self._covariates)
                    self.columns.append(column)
                self._add_bounded(gate, self.columns[0], proofs)
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
            else:
                self._add_proof(gate, column, proof, lambda p: RateProof(ratio=p.margin, floor=p.floor))

    def _add_shape(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        if not self.has_shape_columns:
            self.has_shape_columns = True
            estimates = (MedianRatio(), None)
            self.columns[:0] = [Column(with_histogram=True, estimate=e) for e in estimates]
        waited, slowest = self.columns[:2]
        self._add_loss(gate, waited)
        for proof in proofs:
            self._add_proof(gate, slowest, proof, lambda p: ShapeProof(margin=p.margin))

    def _add_percentile(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        assert gate.percentile is not None
        highest = below_the_cut(self._longest, 1.0 + gate.tolerance)
        self.exceedances.append(Exceedance(percentile=gate.percentile, highest=highest))
        self.divisors.append((1.0 + gate.tolerance, *(proof.margin for proof in proofs)))
        column = Column(with_histogram=False, estimate=EventCounts())
        self.columns.append(column)
        self.tail_columns[gate.name] = column
        self._add_loss(gate, column)
        for proof in proofs:
            proof_column = Column(with_histogram=False)
            proof_column.is_tail_proof = True
            self.columns.append(proof_column)
            self._add_proof(gate, proof_column, proof, partial(_tail_proof, gate.percentile))

    def _add_loss(self, gate: Gate, column: Column) -> None:
        """The channels of first requests, of sessions and of later sessions that roll back."""
        bettor = partial(
            loss_bettor,
            gate.kind,
            tolerance=gate.tolerance,
            threshold=gate.threshold,
            longest=self._longest,
            failures=self._failures,
        )
        covariates = self._covariates > 0
        self._rollback(gate, "first", column.first, bettor(sessions=False, covariates=covariates))
        self._rollback(gate, "session", column.units, bettor(sessions=True, covariates=covariates))
        if not gate.is_alarm:
            channel = RoundChannel(bettor(sessions=True))
            column.later.staged.append(channel)
            self.tracks.append(Track(gate, "later", channel))

    def _rollback(self, gate: Gate, use: Use, stream: Stream, bettor: Bettor) -> None:
        channel = Channel(bettor, limit=float("inf"), restart_share=self._restart_share)
        stream.channels.append(channel)
        self.tracks.append(Track(gate, use, channel))

    def _add_score_proof(self, gate: Gate, proof: Proof) -> None:
        """The channels that prove a margin of a score, both if failures score 0 and if they score 1."""
        if not self.score_proofs:
            self.score_proofs.append(Column(with_histogram=False, covariates=self._covariates))
        [column] = self.score_proofs
        for failed_as in (0.0, 1.0):
            bettor = partial(_score_proof, failed_as, self._covariates > 0)
            later = partial(_score_proof, failed_as, False)
            self._add_proof(gate, column, proof, bettor, later, failed_as=failed_as)

    def _add_proof(
        self,
        gate: Gate,
        column: Column,
        proof: Proof,
        bettor: Callable[[Proof], Bettor],
        later: Callable[[Proof], Bettor] | None = None,
        *,
        failed_as: float | None = None,
    ) -> None:
        """The channels of sessions, of first requests and of later sessions that prove a margin.

        later: the bettor on later sessions; None: the same.
        """
        streams: dict[Use, Stream] = {"proof": column.units, "first proof": column.first}
        if not proof.is_whole:  # a coin may be bet once, and a unit has a later session in each stage
            streams["later proof"] = column.later_proof
        for use, stream in streams.items():
            chosen = later if use == "later proof" and later is not None else bettor
            channel = self._proof_channel(chosen(proof))
            channel.is_idle = use != "proof"  # until units are known to be sticky
            (stream.channels if proof.is_whole else stream.staged).append(channel)
            staged = None if proof.is_whole else stream
            self.tracks.append(Track(gate, use, channel, proof, staged, failed_as))

    def _proof_channel(self, bettor: Bettor) -> Channel:
        limit, least = self._proof_limit, self._min_proof_canary
        if isinstance(bettor, TailProof):
            return TailChannel(bettor, limit=limit, min_canary=least)
        return Channel(bettor, limit=limit, min_canary=least)


def _tail_proof(percentile: float, _: Proof) -> Bettor:
    return TailProof(percentile=percentile)


def _score_proof(failed_as: float, covariates: bool, proof: Proof) -> Bettor:
    return ScoreProof(margin=proof.margin, failed_as=failed_as, covariates=covariates)
