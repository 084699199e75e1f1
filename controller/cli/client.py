"""HTTP client of the controller's API: returns views, raises the errors of `controller.errors`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from controller import errors
from controller.auth import admin_token, make_token
from controller.cli.http import Answer, NoAnswer, send
from controller.cli.listener import require_own_listener
from controller.errors import CanaryctlError, Unreachable
from controller.settings import Settings, load_settings
from controller.views.models import CommandResult, PlanView, RolloutView, ServiceView

if TYPE_CHECKING:
    from controller.ab.results import AbView

TIMEOUT_S = 30.0
HEALTH_TIMEOUT_S = 2.0
# A deploy hashes the checkpoint's files once: 140 GB take minutes.
HASH_TIMEOUT_S = 1800.0
POLL_S = 0.5

T = TypeVar("T")
V = TypeVar("V", bound=BaseModel)


class Client:
    """One controller's API. Raises Unreachable when nothing answers, otherwise the controller's own error."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.api_url
        self._home = settings.home
        self._settings = settings
        self._is_own = False  # its user was looked at too
        self._is_canaryctl = False  # what listens at the URL has said so; until then it gets no token

    def health(self) -> Mapping[str, Any] | None:
        """Answer of /healthz; None: no canaryctl controller answers at this URL."""
        try:
            health = _health_in(self._healthz(HEALTH_TIMEOUT_S))
        except NoAnswer:
            return None
        self._is_canaryctl = self._is_canaryctl or health is not None
        return health

    def accepts_token(self) -> bool:
        """True when the answering controller accepts this state folder's token, so belongs to it."""
        try:
            return self._send("GET", "/v1/services").status != 401
        except NoAnswer:
            return True  # it stopped answering; nothing indicates another state folder's controller

    def up(self, body: Mapping[str, Any]) -> ServiceView:
        """Create the service that `body` names."""
        rest = {key: value for key, value in body.items() if key != "service"}
        answer = self._request("PUT", _path(body["service"]), rest, timeout_s=HASH_TIMEOUT_S)
        return self._view(ServiceView, answer)

    def down(self, service: str) -> None:
        """Start the removal of a service."""
        self._request("DELETE", _path(service))

    def services(self) -> list[ServiceView]:
        """All services."""
        return [self._view(ServiceView, item) for item in self._request("GET", "/v1/services")]

    def service(self, name: str, *, timeout_s: float = TIMEOUT_S) -> ServiceView:
        """One service."""
        return self._view(ServiceView, self._request("GET", _path(name), timeout_s=timeout_s))

    def plan(self, service: str, body: Mapping[str, Any]) -> PlanView:
        """Preview of a deploy."""
        answer = self._request("POST", _path(service, "plan"), body, timeout_s=HASH_TIMEOUT_S)
        return self._view(PlanView, answer)

    def deploy(self, service: str, body: Mapping[str, Any]) -> RolloutView:
        """Start a rollout."""
        answer = self._request("POST", _path(service, "rollouts"), body, timeout_s=HASH_TIMEOUT_S)
        return self._view(RolloutView, answer)

    def rollback(self, service: str, *, reason: str, actor: str | None = None) -> CommandResult:
        """Return to the version before."""
        return self._return(_path(service, "rollback"), {"reason": reason}, actor)

    def undo(self, service: str, *, to: str | None, reason: str, actor: str | None = None) -> CommandResult:
        """Serve an earlier version again; to None: the previous one."""
        return self._return(_path(service, "undo"), {"to": to, "reason": reason}, actor)

    def _return(self, path: str, body: Mapping[str, Any], actor: str | None) -> CommandResult:
        """A way back, with who asks for it; without where the controller does not take the name."""
        if actor is None:
            return self._command(path, body)
        try:
            return self._command(path, {**body, "actor": actor})
        except errors.BadInput as exc:
            if "actor" not in str(exc):  # else an older release, or no printable line: not worth a refusal
                raise
            return self._command(path, body)

    def rollout(self, service: str, rollout: str, *, timeout_s: float = TIMEOUT_S) -> RolloutView:
        """One rollout, running or ended. Raises UnknownRollout."""
        path = _path(service, "rollouts", _segment(rollout))
        return self._view(RolloutView, self._request("GET", path, timeout_s=timeout_s))

    def _command(self, path: str, body: Mapping[str, Any]) -> CommandResult:
        return self._view(CommandResult, self._request("POST", path, body))

    def history(self, service: str, *, limit: int) -> list[RolloutView]:
        """Rollouts of a service, newest first."""
        answer = self._request("GET", _path(service, "history") + f"?limit={limit}")
        return [self._view(RolloutView, item) for item in answer]

    def create_ab(self, service: str, body: Mapping[str, Any]) -> AbView:
        """Start an A/B test."""
        return self._ab("POST", service, body, timeout_s=HASH_TIMEOUT_S)

    def ab(self, service: str) -> AbView:
        """Newest A/B test of a service."""
        return self._ab("GET", service)

    def stop_ab(self, service: str) -> CommandResult:
        """End the A/B test."""
        return self._view(CommandResult, self._request("DELETE", _path(service, "ab")))

    def _ab(
        self,
        method: str,
        service: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> AbView:
        from controller.ab.results import AbView

        answer = self._request(method, _path(service, "ab"), body, timeout_s=timeout_s)
        return self._view(AbView, answer)

    def resolve_service(self, name: str | None) -> str:
        """`name`, or the only service when it is None. Raises UnknownService, BadInput."""
        if name is not None:
            return name
        names = [view.service for view in self.services()]
        if len(names) == 1:
            return names[0]
        if not names:
            from controller.wiring.elsewhere import no_service

            raise errors.UnknownService(no_service(self._settings))
        raise errors.BadInput(f"there are {len(names)} services; name one of {', '.join(names)}")

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        try:
            answer = self._send(method, path, body, timeout_s=timeout_s)
        except NoAnswer as exc:
            raise Unreachable(f"no controller answers at {self._url}; {self._remedy()}") from exc
        if _is_unknown_route(answer):
            raise self._lacking_route()
        if answer.status >= 400:
            raise _error(answer, self._url)
        try:
            return answer.json()
        except ValueError as exc:
            raise _not_canaryctl(answer, self._url) from exc

    def _lacking_route(self) -> Unreachable:
        from controller.installed import own_version

        health = self.health() or {}
        release = health.get("version", "of another release")
        return Unreachable(
            f"the controller at {self._url} (canaryctl {release}) does not know what "
            f"canaryctl {own_version()} asks; end it (kill {health.get('pid', 'PID')}), then start "
            "it with this release: canaryctl up"
        )

    def _remedy(self) -> str:
        from controller.wiring.elsewhere import no_service
        from controller.wiring.last_known import has_service

        has_one = has_service(self._settings)
        return "start it: canaryctl up" if has_one else no_service(self._settings)

    def _view(self, shape: type[V], answer: object) -> V:
        """The answer as this view. Raises Unreachable if this release cannot read it."""
        try:
            return shape.model_validate(answer)
        except ValueError as exc:
            from controller.installed import own_version

            release = (self.health() or {}).get("version", "of another release")
            raise Unreachable(
                f"the controller at {self._url} (canaryctl {release}) answers in a form that canaryctl "
                f"{own_version()} cannot read; use the controller's release"
            ) from exc

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Answer:
        if not self._is_canaryctl:
            answer = self._healthz(timeout_s)
            if _health_in(answer) is None:
                raise _not_canaryctl(answer, self._url)
            self._is_canaryctl = True
        if not self._is_own:
            require_own_listener(self._url, self._home)
            self._is_own = True
        # Not before a controller listens: a command that only reads makes no file.
        token = _token_in(self._home)
        return send(method, self._url + path, body=body, token=token, timeout_s=timeout_s)

    def _healthz(self, timeout_s: float) -> Answer:
        """Answer of the one route that needs no token, and is sent none. Raises NoAnswer."""
        return send("GET", self._url + "/healthz", timeout_s=timeout_s)


def can_act() -> bool:
    """Whether a controller of this state folder runs and can act, as where `--direct` was typed first."""
    with suppress(CanaryctlError):
        client = Client(load_settings())
        health = client.health() or {}
        return bool(health.get("leading")) and not health.get("lost_database") and client.accepts_token()
    return False


def _health_in(answer: Answer) -> Mapping[str, Any] | None:
    """The health that a canaryctl controller answers; None: it is another program's answer."""
    try:
        health = answer.json() if answer.status == 200 else None
    except ValueError:
        return None
    return health if isinstance(health, dict) and "leading" in health else None


def _token_in(home: Path) -> str:
    """The folder's token. A folder that is missing, or without one and not to be written, has no controller:
    then one that nobody knows."""
    if not home.is_dir():
        return make_token()
    try:
        return admin_token(home)
    except OSError as exc:
        if exc.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return make_token()


def _path(service: str, *more: str) -> str:
    return "/".join(["/v1/services", _segment(service), *more])


def _segment(name: str) -> str:
    """The name as a part of a path; of one that is no UTF-8 its escaped form, which nothing has."""
    return quote(errors.escaped(name), safe="")


CONNECTION_LOST_S = 30.0  # give up after this long without an answer of the controller


def poll(
    read: Callable[[], T], *, give_up_s: float, pause_s: float = POLL_S, until_s: float | None = None
) -> Iterator[T | None]:
    """Results of `read`, repeatedly; None while it is unreachable. Raises Unreachable after `give_up_s`.

    until_s: time by `time.monotonic` at which it reads once more, whatever the pause; None: none.
    """
    lost_at_s: float | None = None
    while True:
        try:
            result = read()
            lost_at_s = None
            yield result
        except Unreachable:
            lost_at_s = lost_at_s or time.monotonic()
            if time.monotonic() - lost_at_s > give_up_s:
                raise
            yield None
        left_s = pause_s if until_s is None else until_s - time.monotonic()
        time.sleep(min(pause_s, left_s) if left_s > 0 else pause_s)


def _error(answer: Answer, url: str) -> CanaryctlError:
    """The error raised by the controller, as an instance of the same class."""
    try:
        problem = answer.json()
        kind = str(problem["type"]).rpartition(":")[2]
        lines = [str(line) for line in problem["lines"]]
    except (ValueError, KeyError, TypeError):
        return _not_canaryctl(answer, url)
    if answer.status in (401, 403):
        return errors.BadInput(
            f"{url} rejects this token: {lines[0]}; does CANARYCTL_HOME name the controller's state folder?"
        )
    for known in _all_errors(CanaryctlError):
        if known.problem == kind:
            return known(lines) if issubclass(known, errors.BadInput) else known(lines[0])
    # A newer controller's own kind of error: its exit code is one that is known here.
    for known in _all_errors(CanaryctlError):
        if known.exit_code == problem.get("exit_code"):
            return known(lines[0])
    return CanaryctlError(lines[0])


def _is_unknown_route(answer: Answer) -> bool:
    """Whether the controller has no such route: of another release. Its own 404s are of another type."""
    if answer.status not in (404, 405):
        return False
    try:
        return bool(answer.json()["type"] == "urn:canaryctl:http")
    except (ValueError, KeyError, TypeError):
        return False


def _not_canaryctl(answer: Answer, url: str) -> Unreachable:
    return Unreachable(
        f"{url} answers {answer.status} but is not canaryctl; is the port right? "
        "choose another: canaryctl up --api-port PORT"
    )


def _all_errors(base: type[CanaryctlError]) -> Iterator[type[CanaryctlError]]:
    yield base
    for subclass in base.__subclasses__():
        yield from _all_errors(subclass)
