"""Probe of an external endpoint: whether it answers, and if not, why, in one line with the remedy."""

from __future__ import annotations

import aiohttp

from serving.credentials import NoKey
from serving.fleet.types import EndpointError, Launch, one_line
from serving.targets import Endpoint, Target

TIMEOUT_S = 5.0
NO_LIST = (404, 405, 501)  # 501: a server that knows no GET at all

_MODELS = Target("/v1/models")
_CHAT = Target("/v1/chat/completions")


async def endpoint_error(session: aiohttp.ClientSession, launch: Launch) -> EndpointError | None:
    """Why the endpoint of this launch cannot serve; None: it answers. Costs no tokens."""
    url = str(launch.url)
    endpoint = Endpoint.parsed(url)
    try:
        key = None if launch.api_key is None else launch.api_key.read()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        async with session.get(endpoint.url(_MODELS), headers=headers, allow_redirects=False) as answer:
            status, asked = answer.status, f"GET {_MODELS.path}"
        if status in NO_LIST:
            # Some endpoints list no models. Without a message there is nothing to generate.
            body = {"model": launch.endpoint_model or launch.service, "messages": []}
            async with session.post(
                endpoint.url(_CHAT), json=body, headers=headers, allow_redirects=False
            ) as answer:
                status, asked = answer.status, f"POST {_CHAT.path}"
    except NoKey as exc:
        return EndpointError(str(exc), may_heal=False)
    except TimeoutError:
        text = f"{url} does not answer within {TIMEOUT_S:g} s; check that endpoint"
        return EndpointError(text, may_heal=True)
    except aiohttp.ClientError as exc:
        return EndpointError(f"{url} does not answer ({one_line(exc)}); check that endpoint", may_heal=True)
    return _meaning(status, asked, launch)


def _meaning(status: int, asked: str, launch: Launch) -> EndpointError | None:
    """What the probe's status says; None: the endpoint serves. asked: the request that it answered."""
    if status >= 500:
        return EndpointError(f"{launch.url} answers {status} to {asked}; check that endpoint", may_heal=True)
    text = _refusal(status, asked, launch)
    return None if text is None else EndpointError(text, may_heal=False)


def _refusal(status: int, asked: str, launch: Launch) -> str | None:
    """Why the endpoint refuses every request of this launch; None: it does not."""
    url, key = launch.url, launch.api_key
    if status in (401, 403):
        why = (
            f"refuses the key of {key}; correct it" if key else "needs a key; set api_key_env or api_key_file"
        )
        return f"{url} answers {status} to {asked}: it {why}"
    if status == 404:
        model = launch.endpoint_model or launch.service
        return f"{url} answers 404 to {asked}: correct its base URL, or set model, which is {model}"
    if 300 <= status < 400:
        return f"{url} answers {status} to {asked}, a redirect; give the address that it leads to"
    return None
