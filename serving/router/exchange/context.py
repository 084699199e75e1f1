"""What an exchange is given: how its request began, and the port to its router. No socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from serving.messages import Arm, RequestRecord, RouteTable
from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.inputs import gives_input, inputs_of, takes_events
from serving.router.exchange.held import HeldBytes
from serving.router.types import VALUE_PATHS, Assignment, Body, Canary, Limits, Request
from serving.router.upstreams.health import UpstreamHealth
from serving.router.upstreams.key_answers import KeyAnswers
from serving.router.upstreams.reachability import Unreachable
from serving.targets import TEXT_PATHS

if TYPE_CHECKING:
    from serving.router.exchange.answer_text_signals import AnswerText, UnreadTexts
    from serving.router.exchange.trial import PendingRecord, Trials

# A second of these is another file or batch, which somebody pays for.
CREATING_PATHS = frozenset({"/v1/files", "/v1/batches"})


class Start(Struct, frozen=True, gc=False):
    """How a request began."""

    request_id: str
    request: Request
    table: RouteTable  # by which the arm was assigned
    assignment: Assignment
    is_eligible: bool  # assigned to an arm and recorded
    streams: bool  # the client asked for a stream
    at_s: float  # wall clock
    now_s: float
    bodies: Mapping[str, Body] = field(default_factory=dict)  # rewritten, by an endpoint's model name
    choices: int | None = 1  # answers that the request asks for; None: not known
    is_continuable: bool = False  # a stream that another engine could continue
    is_background: bool = False  # the answer only names a response that is made later
    # A second one would make, do or store something twice: it is sent again only where no engine has read it,
    # or to stable, where its canary has failed or was ended with its rollout.
    is_once: bool = False
    asks_whole: bool = False  # its body is known to ask for an answer that is no stream
    is_judged: bool = False  # its unit is among those of which a judge is asked
    owner: str | None = None  # name of the client, whose is what it makes; None: clients are not told apart
    via: bytes = b""  # through which routers it has come, this one included
    client: str = ""  # whose work it is (`admission.client_name`)
    # Whether its answer is checked by the form that it asks for. None: no rollout compares it, so that it is
    # decided when it is recorded.
    is_checked: bool | None = None
    sent_bytes: int | None = None  # of the body of a request that has ended, without it; None: it is here

    @property
    def is_compared(self) -> bool:
        """Whether its arm was drawn in a rollout."""
        return self.assignment.canary is not None and self.assignment.w > 0.0

    @property
    def creates(self) -> bool:
        """Whether it makes something that lasts, of which a repetition would make two."""
        is_job = self.is_background and self.request.path == "/v1/responses"
        return is_job or (self.request.method == "POST" and self.request.target.path in CREATING_PATHS)

    @property
    def body_bytes(self) -> int:
        """Bytes of the request's body."""
        return len(self.request.body) if self.sent_bytes is None else self.sent_bytes

    def scan(self, content_type: str, *, is_ours: bool) -> AnswerScan:
        """The scan of an answer to it. is_ours: of an engine that canaryctl runs."""
        path = self.request.path
        has_input = path in VALUE_PATHS and gives_input(self.request)
        may_be_wrong = self.asks_whole and path in TEXT_PATHS and content_type.startswith("text/event-stream")
        is_whole = may_be_wrong and not takes_events(self.request)
        parts = path, content_type, self.choices, is_ours, self.streams
        inputs = inputs_of(self.request) if has_input else 0
        is_read = self.asks_whole or self.streams  # its body
        may_wait = self.is_background or not is_read or path != "/v1/responses"
        return AnswerScan(*parts, has_input=has_input, inputs=inputs, asks_whole=is_whole, may_wait=may_wait)

    def without_body(self) -> Start:
        """This, for a record that is made later."""
        request = replace(self.request, body=b"")
        return replace(self, request=request, bodies={}, sent_bytes=self.body_bytes)

    @property
    def asked(self) -> str | None:
        """Its path, if it asks a model for an answer, which is read; None: it does not."""
        return self.request.target.path if self.is_eligible else None


class RouterContext(Protocol):
    """What an exchange needs of its router."""

    @property
    def service(self) -> str: ...
    @property
    def router(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def table(self) -> RouteTable | None: ...
    @property
    def in_flight(self) -> dict[str, int]:
        """Requests of this router by address; absent: none."""

    @property
    def vocabularies(self) -> dict[str, str]:
        """Digest of the vocabulary of each version, as its engines named it; absent: not known."""

    @property
    def unfit(self) -> set[str]:
        """Versions whose engines have said of an answer that it cannot be continued."""

    @property
    def unreachable(self) -> Mapping[str, Unreachable]:
        """Why no connection can be made, by origin; absent: one was made last."""

    @property
    def held(self) -> HeldBytes:
        """The budget of held bytes, shared with the other services of a front."""

    @property
    def health(self) -> UpstreamHealth | None:
        """The upstreams that fail; None: the fleet says which replicas are well."""

    @property
    def keys(self) -> KeyAnswers:
        """What the service's endpoints answered to its own API keys."""

    @property
    def trials(self) -> Trials:
        """The trials of canaries that are set aside."""

    @property
    def unread(self) -> UnreadTexts:
        """Answers whose signals are not read yet."""

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while this canary may be sent requests."""

    def on_pending(self, request_id: str, pending: PendingRecord) -> None:
        """This request has ended; its record waits for a trial."""

    def on_record(
        self,
        record: RequestRecord,
        *,
        assigned_s: float,
        canary: Canary | None,
        text: AnswerText | None = None,
    ) -> None:
        """Accept the one record of a request. text: from which its signals are read; None: it has none."""


def current_stable(context: RouterContext, table: RouteTable) -> Arm | None:
    """Stable of the newest table: its replicas may have changed since `table` assigned the request."""
    return (context.table or table).stable
