"""What the larger commands do: bring up, take down, roll back past a dead controller, check files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from controller.cli import processes
from controller.cli.client import Client, patiently
from controller.cli.output import say
from controller.errors import (
    BadInput,
    CanaryctlError,
    RolloutRunning,
    TimedOut,
    UnknownService,
    Unreachable,
)
from controller.planning.fingerprint import fingerprint_checkpoint, known_architectures
from controller.quantities import gib
from controller.settings import Settings
from controller.spec.service import VersionSpec, parse_policy, parse_service, parse_version, parse_yaml
from controller.store.digest_cache import read_hashes, write_hashes
from controller.views.models import ServiceView

UP_TIMEOUT_S = 900.0
DOWN_TIMEOUT_S = 180.0
SILENCE_S = 30.0
PRESETS = ("default", "strict", "vendor")


# --- what was asked, as the API takes it


def service_body(
    settings: Settings,
    *,
    service: str | None,
    model: Path | None,
    url: str | None,
    file: Path | None,
    policy: str | None,
    replicas: int | None,
    gpus: float | None,
    engine: Sequence[str] | None,
) -> dict[str, Any] | None:
    """The service as `up` was told it, checked; None: what was there before. Raises BadSpec, BadInput."""
    source = _source(model, url)
    sizes = {name: value for name, value in (("replicas", replicas), ("gpus", gpus)) if value is not None}
    options = {**source, **sizes, **({"engine": engine} if engine else {})}
    if file is not None:
        if service is not None or options:
            name = "service" if service is not None else next(iter(options))
            raise BadInput(f"--file and --{name} cannot be given together; write {name} into {file}")
        body = _mapping(_read_yaml(file), file)
        base = file.parent
    elif not source:
        if service is not None:
            raise BadInput(f"what should {service} serve? give --model DIR or --url URL")
        if unheard := [*options, *(["policy"] if policy is not None else [])]:
            raise BadInput(
                f"--{unheard[0]} of which service? give --service NAME and --model DIR or --url URL; "
                "for one that runs: canaryctl deploy"
            )
        return None
    else:
        if service is None:
            raise BadInput("the service has no name; give --service NAME")
        body = {"service": service, **source, **sizes, **engine_arguments(engine)}
        base = Path.cwd()
    if policy is not None:
        body["policy"] = read_policy(policy)
    spec = parse_service(body).located(base)
    if spec.model is not None:
        hashes = read_hashes(settings.hashes_path)
        fingerprint_checkpoint(Path(spec.model), architectures=known_architectures(), cache=hashes)
        write_hashes(settings.hashes_path, hashes)
        body["model"] = spec.model
    return body


def change_body(
    *,
    model: Path | None,
    url: str | None,
    engine: Sequence[str] | None,
    policy: str | None,
    twin: bool = False,
) -> dict[str, Any]:
    """What to deploy, as far as it can be checked here. Raises BadSpec, BadInput."""
    version: dict[str, Any] = {**_source(model, url), **engine_arguments(engine)}
    rules = read_policy(policy) if policy is not None else None
    if twin or (isinstance(rules, dict) and rules.get("twin") is True):
        if version:
            raise BadInput("a twin run takes the version that serves; leave --model, --url and --engine out")
        return {"twin": True, **({"policy": rules} if rules is not None else {})}
    if not version:
        raise BadInput("nothing to deploy; give --model DIR, --url URL or --engine KEY=VALUE, or --twin")
    if model is not None or url is not None:
        parse_version(version)
    return {"version": version, **({"policy": rules} if rules is not None else {})}


def engine_arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`--engine key=value` pairs as a version has them: some by a key of its own, the rest under `engine`.

    Values are as YAML reads them (true, 0.5, 4096, text). Raises BadInput.
    """
    own: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise BadInput(f"--engine {pair!r} is not KEY=VALUE; write --engine max_model_len=4096")
        name = key.strip().lstrip("-").replace("-", "_")
        has_own_key = name in VersionSpec.model_fields and name not in ("model", "url", "engine")
        (own if has_own_key else arguments)[name] = parse_yaml(value, f"--engine {name}")
    return {**own, **({"engine": arguments} if arguments else {})}


def read_policy(text: str) -> Any:
    """The policy that a preset's name or a file says, as a mapping, checked. Raises BadSpec, BadInput."""
    if text in PRESETS:
        return {"preset": text}
    raw = _read_yaml(Path(text))
    parse_policy(raw)
    return raw


def check_files(*, model: Path | None, policy: str | None, file: Path | None) -> Iterator[str]:
    """One line for each thing that is sound. Raises what is wrong with the first that is not."""
    if model is None and policy is None and file is None:
        raise BadInput("nothing to check; give --model DIR, --policy FILE or --file FILE")
    if policy is not None:
        gates = parse_policy(read_policy(policy)).gate_policy()
        count = len(gates.gates) + len(gates.observed_ranges)
        yield f"policy {policy} is sound: {count} gates, alpha {gates.alpha:g}"
    if file is not None:
        service = parse_service(_read_yaml(file)).located(file.parent)
        yield f"service file {file} is sound: {service.service}"
        model = Path(service.model) if service.model is not None else model
    if model is not None:
        found = fingerprint_checkpoint(model.absolute(), architectures=known_architectures())
        size = gib(found.tensor_bytes)
        yield f"checkpoint {model} is sound: {found.architecture}, {found.parameters:,} parameters, {size}"


# --- up and down


def bring_up(
    settings: Settings,
    body: Mapping[str, Any] | None,
    *,
    port: int | None,
    api_port: int | None,
    wait_s: float | None,
) -> list[ServiceView]:
    """Start what does not run, make the service, wait until it answers (0: do not; None: 15 minutes)."""
    with processes.one_at_a_time(settings):
        with Console(stderr=True).status("starting Ray and the controller"):
            settings = processes.start(settings, ingress_port=port, api_port=api_port)
        client = Client(settings)
        try:
            names = [_make(client, body)] if body is not None else _names(client)
        except CanaryctlError:
            _end_if_idle(settings, client)
            raise
        if wait_s != 0:
            for name in names:
                _wait_until_served(client, name, UP_TIMEOUT_S if wait_s is None else wait_s)
        return [client.service(name) for name in names]


def _make(client: Client, body: Mapping[str, Any]) -> str:
    return client.up(str(body["service"]), {key: body[key] for key in body if key != "service"}).service


def _names(client: Client) -> list[str]:
    names = [view.service for view in client.services()]
    if not names:
        raise UnknownService("there is no service yet; start one: canaryctl up --service NAME --model DIR")
    return names


def _end_if_idle(settings: Settings, client: Client) -> None:
    """A refused `up` leaves nothing behind: without a service, controller and cluster have nothing to do."""
    if not client.services():
        _end_all(settings)


def _end_all(settings: Settings) -> None:
    from controller.wiring import cluster

    processes.stop_controller(settings)
    cluster.stop(settings)


def take_down(settings: Settings, service: str | None, *, timeout_s: float | None) -> None:
    """Remove the service (None: all); with the last one end the controller and the cluster of `up`."""
    from controller.wiring import cluster

    ends_at_s = time.monotonic() + (timeout_s or DOWN_TIMEOUT_S)
    with processes.one_at_a_time(settings):
        client = Client(settings)
        if client.health() is None:
            _take_down_dead(settings, service)
            return
        if client.is_ours() and not cluster.is_running(settings):
            # Nothing can be drained or seen gone any more: the controller would wait for it for ever.
            if service is not None:
                raise Unreachable("the Ray cluster is gone; canaryctl up starts it, canaryctl down ends all")
            processes.stop_controller(settings)
            _take_down_dead(settings, None)
            return
        views = [client.service(service)] if service is not None else client.services()
        names = [view.service for view in views]
        for view in views:  # all of them before any: what is refused leaves everything as it was
            if view.rollout is not None and not view.rollout.is_final:
                raise RolloutRunning(
                    f"{view.service} has rollout {view.rollout.rollout} running; "
                    f"end it first: canaryctl rollback {view.service} --wait"
                )
        for name in names:
            client.down(name)
            say(f"{name} is being taken down")
        left = _wait_until_gone(client, names, ends_at_s)
        if not left:
            _end_all(settings)
            say("controller and Ray are stopped")


def _take_down_dead(settings: Settings, service: str | None) -> None:
    """With the controller dead: everything at once, past it."""
    from controller.wiring import cluster
    from controller.wiring import direct_rollback as direct

    if service is not None:
        raise Unreachable(
            f"no controller answers at {settings.api_url}; canaryctl up starts it, canaryctl down ends all"
        )
    had_cluster = cluster.stop(settings)
    forgotten = direct.forget_services(settings)
    say("controller or Ray was dead; what it left is gone" if had_cluster or forgotten else "nothing runs")


def _wait_until_served(client: Client, service: str, timeout_s: float) -> None:
    """Return once stable answers at the service's URL. Raises TimedOut, or the engine's own error."""
    started_s, why = time.monotonic(), ""
    with Console(stderr=True).status(f"loading {service}") as shown:
        for view in patiently(lambda: client.service(service), give_up_s=SILENCE_S):
            spent_s = time.monotonic() - started_s
            if view is not None:
                stable = next((one for one in view.versions or () if one.version == view.stable), None)
                if stable is not None and stable.phase == "failed":
                    raise CanaryctlError(
                        f"{service}: {view.stable} does not load: {stable.last_error or 'no error given'}; "
                        f"canaryctl down {service} takes it away"
                    )
                if stable is not None and stable.phase == "ready" and _answers(view.url):
                    return
                shown.update(f"{service}: {stable.phase if stable else 'waiting'} for {spent_s:.0f} s")
                why = f" ({stable.last_error})" if stable is not None and stable.last_error else ""
            if spent_s > timeout_s:
                raise TimedOut(f"{service} does not answer after {timeout_s:g} s and goes on loading{why}; "
                               f"canaryctl status {service} shows it")  # fmt: skip


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models", timeout=5.0, trust_env=False, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


def _wait_until_gone(client: Client, names: Sequence[str], ends_at_s: float) -> list[str]:
    """Names of the services that are left, once `names` are gone. Raises TimedOut."""
    with Console(stderr=True).status("waiting until engines and routers are gone"):
        for views in patiently(client.services, give_up_s=SILENCE_S):
            if views is not None:
                left = [view.service for view in views]
                going = [name for name in names if name in left]
                if not going:
                    return left
                if time.monotonic() > ends_at_s:
                    raise TimedOut(
                        f"{', '.join(going)} is not gone yet and still being taken down; run down again"
                    )
    raise AssertionError("patiently never ends by itself")


# --- past a dead controller


def roll_back_directly(settings: Settings, service: str | None, *, reason: str) -> None:
    """Leave a tombstone in the route table and the request in the store; say which worked.

    Raises Unreachable while traffic may still reach the canary, whatever the store took.
    """
    from controller.wiring import direct_rollback as direct

    done = direct.roll_back_directly(settings, service, reason=reason or "direct rollback")
    for line in (*done.succeeded, *done.failed):
        say(line)
    if not done.succeeded:
        raise Unreachable(
            "neither the route table nor the store could be reached; is Ray running on this host?"
        )
    if not done.has_moved:
        raise Unreachable("traffic has not moved: the route table could not be told; run it where Ray runs")


# --- files


def _source(model: Path | None, url: str | None) -> dict[str, Any]:
    source: dict[str, Any] = {}
    if model is not None:
        source["model"] = str(model.expanduser().absolute())
    if url is not None:
        source["url"] = url
    return source


def _read_yaml(path: Path) -> object:
    try:
        text = path.read_text()
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror or exc}; give a file that can be read") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path} is not text; give a YAML file") from exc
    return parse_yaml(text, str(path))


def _mapping(raw: object, path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise BadInput(f"{path} holds {type(raw).__name__}; write a mapping, key: value")
    return raw
