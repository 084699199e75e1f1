"""The bettor that proves a margin, for each kind of gate and column; see `gate_channels.py`."""

from __future__ import annotations

from evaluation.betting.left import LeftProof, LeftShare
from evaluation.betting.means import MeanProof
from evaluation.betting.rates import RateProof
from evaluation.betting.scores import ScoreProof
from evaluation.betting.tails import MOST_OFF, TailProof
from evaluation.betting.wealth import Bettor
from evaluation.policy.gates import Proof


def score_proof(as_mean: bool, covariates: bool, proof: Proof) -> Bettor:
    return ScoreProof(margin=proof.margin, as_mean=as_mean, covariates=covariates)


def mean_proof(proof: Proof) -> Bettor:
    return MeanProof(ratio=proof.margin)


def tail_proof(percentile: float, _: Proof) -> Bettor:
    return TailProof(percentile=percentile)


def recent_proof(percentile: float, _: Proof) -> Bettor:
    return TailProof(percentile=percentile, least_off=MOST_OFF)


def limit_proof(_: Proof) -> Bettor:
    return RateProof(ratio=1.0, floor=0.0, missing_as=1.0)


def left_proof(percentile: float, proof: Proof) -> Bettor:
    return LeftProof(percentile=percentile, margin=proof.margin)


def left_share(percentile: float, proof: Proof) -> Bettor:
    return LeftShare(percentile=percentile, by_stage=not proof.is_whole)


def rate_proof(missing_as: float, proof: Proof) -> Bettor:
    return RateProof(ratio=proof.margin, floor=proof.floor, missing_as=missing_as)
