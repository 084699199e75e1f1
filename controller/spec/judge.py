"""Spec of a service's judge: a model asked of a share of both versions' answers, at an endpoint or here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from controller.quantities import percent
from controller.spec.fields import FieldError, Weight
from controller.spec.policy import PolicySpec
from controller.spec.version import VersionSpec
from serving.targets import Endpoint

#: How long after its request a verdict counts, unless the policy's gate has a deadline: the longest answer
#: takes a minute, a question half of one, and the rest is the judge's queue.
DEADLINE_S = 180.0
NAME_LIMIT = 200  # characters, of a model at an endpoint
FEWEST_VERDICTS = 500  # that a share of under 1 % of the answers needs half a million of


class JudgeSpec(VersionSpec):
    """A judge of answers: an endpoint (`url`), or a checkpoint that canaryctl serves beside both versions.

    Its verdicts become scores of `metric`: 1 right, 0 wrong.
    """

    share: Weight = Field(
        default=2000, description="share of both versions' answers that it is asked of; 0% asks of none"
    )
    metric: Literal["quality"] = Field(default="quality", description="the metric of its scores")
    per_minute: int = Field(
        default=60,
        ge=1,
        le=60_000,
        description="questions of one router a minute; what exceeds it is lost",
    )
    off_cluster: bool = Field(
        default=False, description="users' texts may leave the cluster, redacted, for an address elsewhere"
    )

    def _errors(self, *, is_stored: bool) -> Iterator[ValueError]:
        """Each broken rule on several keys; none of a stored judge, which was accepted once."""
        if is_stored:
            return
        if self.model is None and self.url is not None:
            yield FieldError("model", "is missing; write the name of the judge's model at url")
        yield from super()._errors(is_stored=False)
        if self.url is not None:
            yield from self._address_errors()
        elif self.off_cluster:
            yield FieldError(
                "off_cluster", "is for a judge elsewhere (url); this one is served here: leave it out"
            )
        if self.url is None and self.replicas != 1:
            yield FieldError(
                "replicas", f"{self.replicas} are too many: a judge has one engine; leave it out"
            )
        if 0 < self.share < 100:
            yield FieldError(
                "share",
                f"{percent(self.share)} is below 1 %: {FEWEST_VERDICTS} verdicts need "
                f"{FEWEST_VERDICTS * 10_000 // self.share:,} answers; raise it, or 0% to ask of none",
            )

    def _address_errors(self) -> Iterator[FieldError]:
        """What is wrong with an endpoint's address or the name of its model."""
        if self.model is not None and len(self.model) > NAME_LIMIT:
            text = f"has {len(self.model)} characters, at most {NAME_LIMIT}; give the model's name at url"
            yield FieldError("model", text)
        try:
            endpoint = Endpoint.parsed(str(self.url))
        except ValueError:
            return  # an error of every version's
        if not (endpoint.is_inside or self.off_cluster):
            yield FieldError(
                "url",
                f"{self.url} is no loopback or private address, so texts of users would leave the "
                "cluster; name a judge there, or allow it: off_cluster: true (they are redacted first)",
            )

    @property
    def title(self) -> str:
        """What people call it: its model's name at the endpoint, or the folder of its checkpoint."""
        return str(self.model) if self.is_external else Path(str(self.model)).name

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without its address or name, with ones that break no rule."""
        gone = {path.partition(".")[0] for path in paths}
        if not data.get("url") and "url" not in gone:
            return super().without(data, gone) | ({"model": "judge"} if "model" in gone else {})
        kept = super().without(data, gone)
        return kept | {key: "http://127.0.0.1" for key in ("url", "model") if key in gone}


def judge_of(judge: JudgeSpec | None, policy: PolicySpec) -> JudgeSpec | None:
    """The judge that a rollout under this policy asks; None: it has none, or its verdicts decide nothing."""
    if judge is None or judge.share == 0:
        return None
    gates = policy.gate_policy().gates
    return judge if any(gate.metric == judge.metric and not gate.is_alarm for gate in gates) else None


def judged_gates(judge: JudgeSpec, policy: PolicySpec) -> dict[str, dict[str, Any]]:
    """What the gates on the judge's metric must say, by name: the share that is judged, and until when.

    A deadline that the policy gives stays. Raises FieldError for another share.
    """
    share = judge.share / 10_000
    changes = {}
    for gate in policy.gate_policy().gates:
        if gate.metric != judge.metric:
            continue
        given = policy.gates.get(gate.name)
        if given is not None and given.sampling is not None:
            stated = (given.sampling.stable, given.sampling.canary)
            if stated != (share, share):
                raise FieldError(
                    f"gates.{gate.name}.sampling",
                    f"is stable {stated[0]:g}, canary {stated[1]:g}, but the service's judge is asked of "
                    f"{percent(judge.share)} of both; leave it out",
                )
        written = {} if given is None else given.model_dump(mode="json", exclude_none=True)
        changes[gate.name] = {
            "deadline": DEADLINE_S,
            **({"mirrored": True} if policy.mirror is not None else {}),  # its pairs are judged
            **written,
            "sampling": {"stable": share, "canary": share},
        }
    return changes
