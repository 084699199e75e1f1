"""Probes of a canary before it gets user traffic: preflight, warm-up, smoke test. Over HTTP to its engines.

Invariants: a probe runs in a thread beside the ticks, once per rollout and kind, and again while it has no
verdict: soon while the fleet, the table or the store does not answer, later each time where an endpoint was
asked in vain; it bypasses the router, so its requests are no evidence; after a restart it starts again.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from controller import telemetry
from controller.errors import Unreachable
from controller.rollout.actions import ProbeKind, RunProbe
from controller.rollout.observation import ProbePhase, ProbeStatus
from controller.rollout.plan import PreflightPlan
from controller.rollout.state import RolloutState
from controller.runtime.preflight_run import run_preflight
from serving.credentials import SECRET_HEADER, KeyFilter, NoKey
from serving.files.plain_text import plain_text
from serving.judging.chat_client import ChatClient
from serving.network_errors import network_reason
from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.answer_text import said
from serving.targets import Endpoint
from serving.targets import Target as RouteTarget

REQUEST_TIMEOUT_S = 60.0  # in total, of one request
ANSWER_LIMIT = 1 << 20  # bytes of one answer
DETAIL_LIMIT = 300  # characters of a probe's reason
VERDICT_LIMIT = 1000  # characters of what smoke cases and a golden set found
SPARE_S = 5.0  # by which it ends before its phase, which is held without a verdict
BLINK_S = 1.0  # after a try that could not begin
RETRY_S = 15.0  # after the first try of a probe without a verdict, twice as long after each other
LONGEST_RETRY_S = 1800.0  # a golden set may cost much
MAX_RUNS = 100  # results that are kept of probes that have ended
WARM_TOKENS_EACH = 64
MAX_WARM_REQUESTS = 200  # whatever warmup_tokens is
LOAD_S = 3.0
MAX_LOAD_PER_S = 20.0
SMOKE_PROMPTS = ("Say hello.", "What is the capital of France?", "Count from one to three.")


@dataclass(frozen=True, slots=True)
class Target:
    """Address of a version. headers: sent with each request. model: the name that routers send there."""

    urls: tuple[str, ...]
    headers: Mapping[str, str] = field(repr=False)  # hold a secret
    model: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole answer, without our own secrets."""

    status: int
    content: bytes
    content_type: str

    @property
    def is_positive(self) -> bool:
        """True for a status of 2xx: its content says whether it is an answer."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """Its start on one line, for a message."""
        return " ".join(self.content[:2000].decode("utf-8", "replace").split())

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        try:
            return json.loads(self.content)
        except RecursionError as exc:
            raise ValueError("nested too deeply") from exc


@dataclass(frozen=True, slots=True)
class _Completion:
    """What a model answered, as routers read it."""

    tokens: int  # 0: not known
    is_blank: bool  # it says nothing, and not why


@dataclass(slots=True)
class _Run:
    phase: ProbePhase = "running"
    detail: str = ""
    is_running: bool = False  # also while it is tried again, and `phase` is of the try before
    ended_s: float = 0.0  # monotonic time of the last try's end
    tries: int = 0  # that asked, and had no verdict
    has_begun: bool = True  # the last try could ask
    has_answered: bool = False  # each replica has answered the plain prompts

    @property
    def pause_s(self) -> float:
        """From the end of the last try to the next."""
        if not self.has_begun:
            return BLINK_S
        return min(LONGEST_RETRY_S, RETRY_S * 2.0 ** min(self.tries - 1, 20))

    @property
    def is_due(self) -> bool:
        """True: it was not tried yet, or had no verdict and is to be tried again now."""
        if self.is_running or self.phase in ("passed", "failed"):
            return False
        return self.phase == "running" or time.monotonic() - self.ended_s >= self.pause_s


class ProbeFailed(Exception):
    """The canary failed the probe; the message is one line."""


class ProbeRefused(ProbeFailed):
    """The canary failed cases or a golden set; the message is longer."""


class NotJudged(Exception):
    """The probe has no verdict, because what it needs does not answer; the message is one line."""


class HttpProbes:
    """Port `Probes`."""

    def __init__(
        self,
        *,
        target: Callable[[str, str], Target | None],
        preflight: Callable[[RolloutState], None],
        rate_per_s: Callable[[str], float | None],
    ) -> None:
        """target: address of (service, version), None: it does not run. preflight: raises when it fails. Both
        raise Unreachable when what they need does not answer. rate_per_s: request rate of a service, None
        when unknown."""
        self._target = target
        self._preflight = preflight
        self._rate_per_s = rate_per_s
        self._runs: dict[tuple[str, ProbeKind], _Run] = {}

    def start_or_check(self, rollout: RolloutState, probe: RunProbe) -> ProbeStatus:
        """Status of the probe, which is started if it is unknown."""
        key = (rollout.id, probe.probe)
        if (run := self._runs.get(key)) is None:
            self._forget_ended()
            run = self._runs[key] = _Run()
        if run.is_due:
            self._begin(rollout, probe, run)
        return ProbeStatus(probe.probe, run.phase, run.detail)

    def _begin(self, rollout: RolloutState, probe: RunProbe, run: _Run) -> None:
        run.is_running = True
        # Not `Background`: its phase limits a probe, and a hash of 140 GB may go on for long after it.
        name = f"{probe.probe.value} of {rollout.id}"
        try:
            threading.Thread(target=self._work, args=(rollout, probe, run), name=name, daemon=True).start()
        except RuntimeError as exc:  # the system has no thread now
            self._no_verdict(rollout, probe, run, f"NOT JUDGED: it cannot be run: {exc}", has_begun=False)

    def _forget_ended(self) -> None:
        """Keep the newest `MAX_RUNS` results: a rollout asks for its own within minutes."""
        for key in [key for key, run in self._runs.items() if not run.is_running][:-MAX_RUNS]:
            del self._runs[key]

    def _work(self, rollout: RolloutState, probe: RunProbe, run: _Run) -> None:
        began_s = time.monotonic()
        try:
            detail = self._run(rollout, probe, run)
        except NotJudged as exc:
            self._no_verdict(rollout, probe, run, str(exc), has_begun=True)
            return
        except Unreachable as exc:  # a component of ours, which says nothing of the canary
            self._no_verdict(rollout, probe, run, f"NOT JUDGED: {exc}", has_begun=False)
            return
        except Exception as exc:  # noqa: BLE001 - any error fails the probe, with its reason
            while isinstance(exc, ExceptionGroup):  # of the load's requests
                exc = exc.exceptions[0]
            limit = VERDICT_LIMIT if isinstance(exc, ProbeRefused) else DETAIL_LIMIT
            run.detail = plain_text((str(exc).splitlines() or [type(exc).__name__])[0], limit=limit)
            run.phase, run.is_running = "failed", False
            telemetry.warning("probe failed", rollout=rollout.id, probe=probe.probe.value, why=run.detail)
            return
        run.detail = plain_text(detail, limit=VERDICT_LIMIT)
        run.phase, run.is_running = "passed", False
        took_ms = round((time.monotonic() - began_s) * 1000)
        telemetry.event("probe passed", rollout=rollout.id, probe=probe.probe.value, took_ms=took_ms)

    def _no_verdict(
        self, rollout: RolloutState, probe: RunProbe, run: _Run, why: str, *, has_begun: bool
    ) -> None:
        before, run.detail = run.detail, plain_text(why, limit=VERDICT_LIMIT)
        run.tries += has_begun
        run.has_begun, run.ended_s = has_begun, time.monotonic()
        run.phase, run.is_running = "not_judged", False
        if run.detail != before:
            telemetry.warning("probe not judged", rollout=rollout.id, probe=probe.probe.value, why=run.detail)

    def _run(self, rollout: RolloutState, probe: RunProbe, run: _Run) -> str:
        if probe.probe is ProbeKind.PREFLIGHT:
            self._preflight(rollout)
            return ""
        began_s = time.monotonic()
        target = self._target(rollout.service, probe.version)
        if target is None or not target.urls:
            # It was ready a moment ago: a fleet that began anew knows none, and of a loss it tells itself.
            raise Unreachable(f"{probe.version} has no address to probe; see its engine's log")
        if probe.probe is ProbeKind.WARM:
            rate = self._rate_per_s(rollout.service) or 0.0
            per_replica = min(MAX_LOAD_PER_S, rate / max(1, rollout.stable.replicas))
            plan = rollout.plan
            return asyncio.run(_within(plan.warm_s, _warm(target, probe.warmup_tokens, per_replica)))
        if not run.has_answered:  # once is enough: a try without a verdict says nothing of it
            asyncio.run(_within(rollout.plan.smoke_s, _smoke(target)))
            run.has_answered = True
        if rollout.plan.preflight is None:
            return ""
        left_s = rollout.plan.smoke_s - (time.monotonic() - began_s) - SPARE_S
        checked = _checked(rollout.plan.preflight, target, self._stable(rollout))
        return asyncio.run(_judged_within(max(1.0, left_s), checked))

    def _stable(self, rollout: RolloutState) -> Target | None:
        """Where stable is asked; None: it has no address now. Raises NotJudged."""
        try:
            return self._target(rollout.service, rollout.stable.id)
        except NoKey as exc:
            raise NotJudged(f"NOT JUDGED: stable cannot be asked: {exc}") from exc


async def _judged_within(limit_s: float, probe: Coroutine[None, None, str]) -> str:
    """Result of a probe that asks stable, too, and so says nothing of the canary when it is late. Raises
    ProbeFailed, NotJudged."""
    try:
        async with asyncio.timeout(limit_s):
            return await probe
    except TimeoutError as exc:
        text = f"NOT JUDGED: not all was asked within {limit_s:.0f} s; raise smoke_timeout of the policy"
        raise NotJudged(text) from exc


async def _within(limit_s: float, probe: Coroutine[None, None, str]) -> str:
    """Result of the probe, which ends with its phase. Raises ProbeFailed."""
    try:
        async with asyncio.timeout(limit_s):
            return await probe
    except TimeoutError as exc:
        text = (
            f"not done within {limit_s:g} s; is the endpoint too slow? smoke_timeout of the policy limits it"
        )
        raise ProbeFailed(text) from exc


async def _warm(target: Target, warmup_tokens: int, rate_per_s: float) -> str:
    """Each replica generates `warmup_tokens`, then serves a short load at stable's request rate."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, headers=target.headers, trust_env=False) as http:
        for url in target.urls:
            generated = 0
            for _ in range(MAX_WARM_REQUESTS):
                if generated >= warmup_tokens:
                    break
                answer = await _complete(http, url, target.model, SMOKE_PROMPTS[0], WARM_TOKENS_EACH)
                generated += max(1, answer.tokens)
            count = round(rate_per_s * LOAD_S)
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(
                        _complete(http, url, target.model, SMOKE_PROMPTS[1], WARM_TOKENS_EACH // 2)
                    )
                    await asyncio.sleep(LOAD_S / count)
    return ""


async def _smoke(target: Target) -> str:
    """Each replica answers a few prompts with some text, or says why it has none."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, headers=target.headers, trust_env=False) as http:
        for url in target.urls:
            for prompt in SMOKE_PROMPTS:
                answer = await _complete(http, url, target.model, prompt, 32)
                if answer.is_blank:
                    raise ProbeFailed("an answer was empty: is the chat template or the tokenizer wrong?")
    return ""


async def _checked(plan: PreflightPlan, target: Target, stable: Target | None) -> str:
    """What came of the smoke cases and the golden set, asked of the canary's first replica and of stable's.

    Raises ProbeRefused, NotJudged."""
    other = _client(stable) if stable is not None and stable.urls else None
    verdict, text = await run_preflight(plan, _client(target), other)
    if verdict.word == "refused":
        raise ProbeRefused(text)
    if verdict.word == "not judged":
        raise NotJudged(text)
    return text


def _client(target: Target) -> ChatClient:
    return ChatClient(target.urls[0], target.model, target.headers, timeout_s=REQUEST_TIMEOUT_S)


async def _complete(
    http: httpx.AsyncClient, url: str, model: str, prompt: str, max_tokens: int
) -> _Completion:
    """Answer of the chat route, or of the completions route if the model has no chat template."""
    chat = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    path = "/v1/chat/completions"
    answer = await _asked(http, "POST", _address(url, path), chat)
    if answer.status in (400, 404):
        plain = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
        second = await _asked(http, "POST", _address(url, "/v1/completions"), plain)
        if second.is_positive:
            path, answer = "/v1/completions", second
    if not answer.is_positive:
        raise ProbeFailed(await _explained(http, url, model, answer))
    return _read(path, answer)


def _read(path: str, answer: _Answer) -> _Completion:
    """The answer as routers read it, by its content. Raises ProbeFailed."""
    scan = AnswerScan(path, answer.content_type, asks_whole=True)
    scan.feed(answer.content)
    fault, text = scan.end(), plain_text(answer.text, limit=100)
    if fault == "malformed" and scan.is_stream:
        raise ProbeFailed(f"the answer is a stream, though none was asked for: {text!r}; turn it off there")
    if fault == "malformed":
        raise ProbeFailed(f"the answer is no JSON object: {text!r}; is it an OpenAI endpoint?")
    if fault is not None and fault != "empty":
        raise ProbeFailed(f"{fault}: {text!r}; see the endpoint's log")
    choices = said(answer.content, is_stream=scan.is_stream) or ()
    words = "".join(str(part) for choice in choices for part in choice.values())
    return _Completion(scan.completion_tokens or 0, fault == "empty" or (words != "" and not words.strip()))


async def _asked(http: httpx.AsyncClient, method: str, url: str, body: object = None) -> _Answer:
    """The whole answer of one request. Raises ProbeFailed when it is too long, too slow or compressed."""
    parts: list[bytes] = []
    size = 0
    headers = {"accept-encoding": "identity"}  # a compressed answer may have any length
    try:
        async with (
            asyncio.timeout(REQUEST_TIMEOUT_S),
            http.stream(method, url, json=body, headers=headers) as answer,
        ):
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise ProbeFailed("the answer is compressed, though that was not accepted; turn it off")
            async for part in answer.aiter_raw():
                size += len(part)
                if size > ANSWER_LIMIT:
                    raise ProbeFailed(
                        f"an answer of more than {ANSWER_LIMIT} bytes; is it an OpenAI endpoint?"
                    )
                parts.append(part)
            content = _without_secrets(b"".join(parts), http.headers)
            return _Answer(answer.status_code, content, answer.headers.get("content-type", "").lower())
    except (TimeoutError, httpx.HTTPError) as exc:
        is_late = isinstance(exc, TimeoutError | httpx.TimeoutException)
        late = f" within {REQUEST_TIMEOUT_S:g} s; is the endpoint too slow?"
        raise ProbeFailed(f"no whole answer{late if is_late else f': {network_reason(exc)}'}") from exc


def _without_secrets(data: bytes, sent: Mapping[str, str]) -> bytes:
    """An answer's bytes without the secrets in the headers that were sent: its text is stored and shown."""
    for name in ("authorization", SECRET_HEADER.decode()):
        data = KeyFilter(sent.get(name, "").removeprefix("Bearer ")).whole(data)
    return data


async def _explained(http: httpx.AsyncClient, url: str, model: str, answer: _Answer) -> str:
    """Why an answer's status fails the probe, with the remedy where one is known."""
    why = f"status {answer.status}: {plain_text(answer.text, limit=200)}"
    if answer.status in (401, 403):
        return f"{why}; does {url} need another key? set api_key_env or api_key_file"
    if answer.status not in (400, 404):
        return why
    names = await _listed_models(http, url)
    if names and model not in names:
        return f"{why}; {url} does not list {model}: set model to one of {', '.join(names[:5])}"
    return f"{why}; is {url} the base URL, and {model} the model's name there? set url, model"


async def _listed_models(http: httpx.AsyncClient, url: str) -> list[str]:
    """The models that an endpoint lists; empty: it lists none."""
    answer = await _asked(http, "GET", _address(url, "/v1/models"))
    try:
        listed = answer.json()["data"] if answer.is_positive else []
        return [str(one["id"]) for one in listed]
    except (ValueError, KeyError, TypeError):
        return []


def _address(url: str, path: str) -> str:
    return str(Endpoint.parsed(url).url(RouteTarget(path)))
