"""The API as the command line calls it: views in, our own errors out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx

from controller import errors
from controller.auth import admin_token
from controller.errors import BadSpec, CanaryctlError, Unreachable
from controller.settings import Settings
from controller.views.models import PlanView, RolloutView, ServiceView

TIMEOUT_S = 30.0
# A deploy hashes the checkpoint's files once: 140 GB take minutes.
HASH_TIMEOUT_S = 1800.0
POLL_S = 0.5

T = TypeVar("T")


class Client:
    """One controller's API. Raises Unreachable when none answers, else what the controller raised."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.api_url
        headers = {"authorization": f"Bearer {admin_token(settings.home)}"}
        # HTTP, and loading certificates that nobody asks for would double the time that a command takes.
        self._http = httpx.Client(
            base_url=self._url, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=False
        )

    def health(self) -> Mapping[str, Any] | None:
        """The controller's own words; None: no canaryctl controller answers there."""
        try:
            answer = self._http.get("/healthz", timeout=2.0)
            found = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) and "leading" in found else None

    def is_ours(self) -> bool:
        """True when the controller that answers there knows this state folder's token."""
        try:
            return self._http.get("/v1/services").status_code != 401
        except httpx.HTTPError:
            return True  # it went silent: nobody else's, as far as can be told

    def up(self, service: str, body: Mapping[str, Any]) -> ServiceView:
        """Make the service."""
        found = self._ask("PUT", f"/v1/services/{service}", body, timeout_s=HASH_TIMEOUT_S)
        return ServiceView.model_validate(found)

    def down(self, service: str) -> None:
        """Ask for the service's end."""
        self._ask("DELETE", f"/v1/services/{service}")

    def services(self) -> list[ServiceView]:
        """All services."""
        return [ServiceView.model_validate(one) for one in self._ask("GET", "/v1/services")]

    def service(self, name: str) -> ServiceView:
        """One service."""
        return ServiceView.model_validate(self._ask("GET", f"/v1/services/{name}"))

    def plan(self, service: str, body: Mapping[str, Any]) -> PlanView:
        """What a deploy would do."""
        found = self._ask("POST", f"/v1/services/{service}/plan", body, timeout_s=HASH_TIMEOUT_S)
        return PlanView.model_validate(found)

    def deploy(self, service: str, body: Mapping[str, Any]) -> RolloutView:
        """Begin a rollout."""
        found = self._ask("POST", f"/v1/services/{service}/rollouts", body, timeout_s=HASH_TIMEOUT_S)
        return RolloutView.model_validate(found)

    def rollback(self, service: str, *, reason: str) -> tuple[str, str]:
        """('asked' | 'already', one line)."""
        found = self._ask("POST", f"/v1/services/{service}/rollback", {"reason": reason})
        return found["outcome"], found["text"]

    def history(self, service: str, *, limit: int) -> list[RolloutView]:
        """The service's rollouts, newest first."""
        found = self._ask("GET", f"/v1/services/{service}/history?limit={limit}")
        return [RolloutView.model_validate(one) for one in found]

    def the_service(self, name: str | None) -> str:
        """The name that was given, or the only service there is. Raises BadInput when that is not clear."""
        if name is not None:
            return name
        names = [one.service for one in self.services()]
        if len(names) == 1:
            return names[0]
        if not names:
            raise errors.UnknownService("there is no service yet; start one: canaryctl up")
        raise errors.BadInput(f"there are {len(names)} services; name one of {', '.join(names)}")

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.HTTPError as exc:
            raise Unreachable(f"no controller answers at {self._url}; start it again: canaryctl up") from exc
        if answer.status_code >= 400:
            raise _error(answer, self._url)
        try:
            return answer.json()
        except ValueError as exc:
            raise _stranger(answer, self._url) from exc


def patiently(read: Callable[[], T], *, give_up_s: float, pause_s: float = POLL_S) -> Iterator[T | None]:
    """What `read` gives, again and again; None while nothing answers, Unreachable after `give_up_s`."""
    silent_since_s: float | None = None
    while True:
        try:
            found = read()
            silent_since_s = None
            yield found
        except Unreachable:
            silent_since_s = silent_since_s or time.monotonic()
            if time.monotonic() - silent_since_s > give_up_s:
                raise
            yield None
        time.sleep(pause_s)


def _error(answer: httpx.Response, url: str) -> CanaryctlError:
    """The error that the controller raised, as the same class."""
    try:
        problem = answer.json()
        kind = str(problem["type"]).rpartition(":")[2]
        lines = [str(line) for line in problem["lines"]]
    except (ValueError, KeyError, TypeError):
        return _stranger(answer, url)
    if answer.status_code in (401, 403):
        return errors.BadInput(f"{url} refuses this token: {lines[0]}; is CANARYCTL_HOME the controller's?")
    for known in _all_errors(CanaryctlError):
        if known.problem == kind:
            return BadSpec(lines) if known is BadSpec else known(lines[0])
    return CanaryctlError(lines[0])


def _stranger(answer: httpx.Response, url: str) -> Unreachable:
    return Unreachable(
        f"{url} answers {answer.status_code} but is no canaryctl; is the port right? "
        "canaryctl up --api-port chooses another"
    )


def _all_errors(base: type[CanaryctlError]) -> Iterator[type[CanaryctlError]]:
    yield base
    for one in base.__subclasses__():
        yield from _all_errors(one)
