"""What a client may ask of an engine, and the addresses that requests are sent to.

Rules:
1. A client's path is decoded and normalised, then looked up in a list of the routes that serve users. What is
   not listed is refused: an engine's control routes, its metrics, and whatever a later vLLM adds.
2. A percent-encoding may only stand for an unreserved character (RFC 3986, 6.2.2.2), or for one of = : @ +,
   which ids have and which mean nothing else in a path. An encoded slash (but in the name of a model), dot
   segments, a backslash or any other character are refused, because two servers could read them differently.
   Repeated slashes and one at the end are dropped.
3. A `Target` can only be made of a listed path in its one spelling, an `Endpoint` only of a parsed address;
   `Endpoint.url` is the one place where they meet. No URL is ever made of a client's text.

Invariant: pure; imports nothing of ours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from yarl import URL

PATH_LIMIT = 1024  # bytes of a request's path
QUERY_LIMIT = 8192

COHERE_CHAT = "/cohere/v2/chat"

# Routes that vLLM 0.32 serves for users, without the scale-out, SageMaker and development ones.
# These ask a model for an answer, so they are assigned to an arm and recorded:
ELIGIBLE_PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses"),
        *("/v1/messages", "/v1/embeddings", "/v2/embed", "/v1/score", "/score", "/generative_scoring"),
        *("/v1/rerank", "/v2/rerank", "/rerank", "/pooling", "/classify", "/v1/systemone"),
        *("/v1/audio/transcriptions", "/v1/audio/translations", "/inference/v1/generate"),
        COHERE_CHAT,
    }
)
# Of these, those whose answers hold text, in one JSON object or in a stream that must finish.
TEXT_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", COHERE_CHAT}
)
REALTIME = "/v1/realtime"  # a WebSocket
FEEDBACK = "/v1/feedback"  # answered by the router itself
# Not drawn, and go on from what an id in their body names.
NAMING_PATHS = frozenset({"/v1/responses/compact", "/v1/responses/input_tokens"})
# These ask for no answer; they go to stable.
_OTHER_PATHS = {
    REALTIME: ("GET",),
    "/v1/models": ("GET",),
    "/v1/messages/count_tokens": ("POST",),
    "/v1/responses/input_tokens": ("POST",),
    # A conversation made short, in items that only the account which made them can read.
    "/v1/responses/compact": ("POST",),
    FEEDBACK: ("POST",),
    "/tokenize": ("POST",),
    "/detokenize": ("POST",),
    # Stable keeps what is made here. vLLM has no such routes, endpoints do.
    "/v1/files": ("GET", "POST"),
    "/v1/batches": ("GET", "POST"),
}
_METHODS = dict.fromkeys(ELIGIBLE_PATHS, ("POST",)) | _OTHER_PATHS
# Each lists what the account at the endpoint keeps, whoever made it.
_LISTS = frozenset({"/v1/files", "/v1/batches"})
# As other gateways make them too: with = : @ +, and longer than any of OpenAI's. The path has its own limit.
_ID = r"[A-Za-z0-9_~-][A-Za-z0-9._~=:@+-]*"
# Of a response, where OpenAI's API and vLLM (render) have verbs too.
_RESPONSE = rf"/v1/responses/(?!(?:compact|input_tokens|render)(?:/|$)){_ID}"
# What an id names is kept by one engine alone: that of the request which made it.
_STATEFUL_PATHS = (
    (re.compile(_RESPONSE), ("GET", "DELETE")),
    (re.compile(rf"{_RESPONSE}/cancel"), ("POST",)),
    (re.compile(rf"{_RESPONSE}/input_items"), ("GET",)),
    (re.compile(rf"/v1/files/{_ID}"), ("GET", "DELETE")),
    (re.compile(rf"/v1/files/{_ID}/content"), ("GET",)),
    (re.compile(rf"/v1/batches/{_ID}"), ("GET",)),
    (re.compile(rf"/v1/batches/{_ID}/cancel"), ("POST",)),
)
_PATHS_WITH_ID = (*_STATEFUL_PATHS, (re.compile(rf"/v1/models/{_ID}(?:/{_ID})*"), ("GET",)))
_PLAIN = re.compile(r"[A-Za-z0-9._~/=:@+-]+")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_OF_MODEL = re.compile(r"(?:/[A-Za-z0-9._-]+)?/v1/models/[^/]+$")  # clients encode the slash of a name
_QUERY = re.compile(r"[!-~]*")
_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9._~:@%+=,-]+)*")
_DOTS = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|$)")
# RFC 1918, 4193, 1122 and 3927: what no address of the public network is.
_INSIDE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    *("::1/128", "fc00::/7", "fe80::/10"),
)
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


# First segments of routes, which no service may have as its name.
RESERVED_NAMES = frozenset(path.split("/")[1] for path in _METHODS)


def methods_of(path: str) -> tuple[str, ...]:
    """The methods of a listed path in its one spelling; empty: it is not for users."""
    methods = _METHODS.get(path)
    if methods is not None:
        return methods
    return next((methods for pattern, methods in _PATHS_WITH_ID if pattern.fullmatch(path)), ())


def method_of(path: str) -> str | None:
    """The first method of a listed path, GET or POST; None: it is not for users."""
    return next(iter(methods_of(path)), None)


def is_stateful(path: str) -> bool:
    """True when the path names what one engine keeps of an earlier request."""
    return any(pattern.fullmatch(path) for pattern, _ in _STATEFUL_PATHS)


def id_of(path: str) -> str | None:
    """The id in the path of what one engine keeps; None: it names none."""
    return path.split("/")[3] if is_stateful(path) else None


def is_list(method: str, path: str) -> bool:
    """True for a request that lists what all clients of an endpoint's account have made there."""
    return method in ("GET", "HEAD") and path in _LISTS


@dataclass(frozen=True, slots=True)
class Target:
    """A listed path and a query, as they are sent to an engine. Raises ValueError for any other text."""

    path: str  # with /v1 where the route has it
    query: str = ""  # percent-encoded, without '?'

    def __post_init__(self) -> None:
        if method_of(self.path) is None:
            raise ValueError(f"{self.path!r} is not a route for users")
        if self.query and (not _QUERY.fullmatch(self.query) or "#" in self.query):
            raise ValueError("a query holds a character that must be percent-encoded")


def normalised(raw: bytes) -> str | None:
    """A request's path, decoded and without empty segments, by rule 2; None: it is not a plain path.

    Check: b'//v1/mod%65ls/' gives '/v1/models'; b'/v1/%2e%2e/x' and b'/a%2fb' give None.
    """
    if len(raw) > PATH_LIMIT or not raw.startswith(b"/"):
        return None
    text = raw.decode("latin-1")
    if "%" in text:
        has_slash = "2f" in {code.lower() for code in _ENCODED.findall(text)}
        if has_slash and not _OF_MODEL.match(text):
            return None
        text = _ENCODED.sub(lambda found: chr(int(found[1], 16)), text)
    if not _PLAIN.fullmatch(text):
        return None
    if "//" in text or "/." in text or text.endswith("/"):
        segments = [segment for segment in text.split("/") if segment]
        if "." in segments or ".." in segments:
            return None
        return "/" + "/".join(segments)
    return text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The fixed address of an OpenAI-compatible server, from `parsed`."""

    scheme: str  # http or https
    authority: str  # host[:port]
    root: str  # path prefix of the routes outside the API: '' or /prefix
    base: str  # path prefix that stands for /v1: /v1, /prefix/v1, /v1beta/openai
    origin: str = field(
        init=False, repr=False, compare=False
    )  # scheme://host[:port]; names a connection's end

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", f"{self.scheme}://{self.authority}")

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def parsed(url: str) -> Endpoint:
        """The server at a base URL as it is written; a bare host serves at /v1. Raises ValueError.

        Check: http://h:1 and http://h:1/v1 are the same; https://h/v1beta/openai has base /v1beta/openai.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ValueError(
                f"{shown(url)!r} is not a URL ({exc}); give http(s)://host[:port][/path]"
            ) from exc
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"{shown(url)!r} holds a user name or password; name the key by api_key_env or api_key_file"
            )
        host = parts.netloc.removesuffix(f":{parts.netloc.rpartition(':')[2]}" if port is not None else "")
        path = parts.path.rstrip("/")
        is_plain = bool(_HOST.fullmatch(host) and _BASE_PATH.fullmatch(path)) and not _DOTS.search(path)
        # urlsplit drops control characters and blanks; a URL that holds any is not what was written.
        is_whole = "?" not in url and "#" not in url and not re.search(r"[^!-~]", url)
        if parts.scheme not in ("http", "https") or not (is_plain and is_whole) or port == 0:
            raise ValueError(
                f"{shown(url)!r} is not http(s)://host[:port][/path]; give the endpoint's base URL"
            )
        if path.endswith(("/chat/completions", "/completions", "/models")):
            short = url.rstrip("/").removesuffix("/models").removesuffix("/completions").removesuffix("/chat")
            raise ValueError(f"{url!r} is the address of one route; give the base URL, {short}")
        return Endpoint(parts.scheme, parts.netloc, path.removesuffix("/v1"), path or "/v1")

    @property
    def is_tls(self) -> bool:
        """True for https."""
        return self.scheme == "https"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to; of an IPv6 address without its brackets.

        Check: https://h gives ("h", 443), http://[::1]:8001 gives ("::1", 8001).
        """
        host, colon, port = self.authority.rpartition(":")
        if not colon or port.endswith("]"):
            return self.authority.strip("[]"), 443 if self.is_tls else 80
        return host.strip("[]"), int(port)

    @property
    def is_inside(self) -> bool:
        """True for a loopback, link-local or private address, and for a name without dots.

        A number alone is an address to the resolver, and no name: 134744072 is 8.8.8.8.
        Check: http://judge:8000, http://10.1.2.3 and http://[fd00::1] are, http://judge.example.com is not.
        """
        import ipaddress  # not above: a spec is checked by commands that start at once

        host = self.address[0]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return "." not in host and not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]*", host)
        return any(address in ipaddress.ip_network(one) for one in _INSIDE)

    def path(self, target: Target) -> str:
        """The path and query by which this target is found here."""
        path = target.path
        path = self.base + path[3:] if path.startswith("/v1/") else self.root + path
        return f"{path}?{target.query}" if target.query else path

    def url(self, target: Target) -> URL:
        """Where this target is found here."""
        path, _, query = self.path(target).partition("?")
        return self._at(path, query)

    def own(self, path: str) -> URL:
        """A path of our own, such as one of the front's control routes; never a client's."""
        return self._at(self.root + path, "")

    def _at(self, path: str, query: str) -> URL:
        from yarl import (
            URL,
        )  # not above: commands that check a spec need no URL, and importing it takes 40 ms

        return URL.build(
            scheme=self.scheme, authority=self.authority, path=path, query_string=query, encoded=True
        )


def shown(url: str) -> str:
    """A URL as it may be shown: without a user name and password, and without a query, which may be a key."""
    return re.sub(r"\?.*", "?…", re.sub(r"//[^/?#]*@", "//…@", url), flags=re.DOTALL)
