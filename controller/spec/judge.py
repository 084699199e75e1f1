"""Spec of a service's judge: a model behind an endpoint asked of a share of both versions' answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from controller.quantities import percent
from controller.spec.fields import Checked, FieldError, Weight
from controller.spec.policy import PolicySpec
from serving.credentials import ENV_NAME
from serving.targets import Endpoint

#: How long after its request a verdict counts, unless the policy's gate has a deadline: the longest answer
#: takes a minute, a question half of one, and the rest is the judge's queue.
DEADLINE_S = 180.0
FEWEST_VERDICTS = 500  # that a share of under 1 % of the answers needs half a million of


class JudgeSpec(Checked):
    """A judge of answers. Its verdicts become scores of `metric`: 1 right, 0 wrong."""

    url: str = Field(description="base URL of an OpenAI-compatible endpoint; on the cluster, or off_cluster")
    model: str = Field(min_length=1, max_length=200, description="name of the judge's model there")
    api_key_env: str | None = Field(
        default=None, description="environment variable of `canaryctl up` that holds the endpoint's API key"
    )
    api_key_file: str | None = Field(
        default=None, min_length=1, description="file that holds the endpoint's API key"
    )
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

    def _errors(self) -> Iterator[FieldError]:
        try:
            endpoint = Endpoint.parsed(self.url)
        except ValueError as exc:
            yield FieldError("url", str(exc))
        else:
            if not (endpoint.is_inside or self.off_cluster):
                yield FieldError(
                    "url",
                    f"{self.url} is no loopback or private address, so texts of users would leave the "
                    "cluster; name a judge there, or allow it: off_cluster: true (they are redacted first)",
                )
        if 0 < self.share < 100:
            yield FieldError(
                "share",
                f"{percent(self.share)} is below 1 %: {FEWEST_VERDICTS} verdicts need "
                f"{FEWEST_VERDICTS * 10_000 // self.share:,} answers; raise it, or 0% to ask of none",
            )
        if self.api_key_env is not None and self.api_key_file is not None:
            yield FieldError("api_key_file", "and api_key_env are both given; keep one")
        # The value is not shown: someone may have written the key itself.
        if self.api_key_env is not None and not re.fullmatch(ENV_NAME, self.api_key_env):
            yield FieldError("api_key_env", "is no name of a variable; name the one that holds the key")

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without its address or name, with ones that break no rule."""
        gone = {path.partition(".")[0] for path in paths}
        kept = super().without(data, gone)
        return kept | {key: "http://127.0.0.1" for key in ("url", "model") if key in gone}

    def located(self, base: Path) -> Self:
        """The judge with its key file made absolute, relative to `base`."""
        if self.api_key_file is None:
            return self
        return self.model_copy(
            update={"api_key_file": str((base / Path(self.api_key_file).expanduser()).absolute())}
        )


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
