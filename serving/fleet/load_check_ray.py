"""The check of a replica that has loaded, before it is ready: its next-token probabilities go to the fleet.

Where nothing can be asked (a model that does not generate, no tokenizer, `max_logprobs: 0`, no answer within
LIMIT_S), nothing is compared, and the replica's log says why: this check never holds up a sound engine.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from ray.exceptions import RayError

from serving.actor_calls_ray import ActorHandles
from serving.actor_names import FLEET
from serving.fleet.behaviour import DAMAGED, PROMPTS, Behaviour, TokenShares, distance, of_logits
from serving.fleet.types import Launch, one_line

LIMIT_S = 120.0
CALL_TIMEOUT_S, RETRY_S = 3.0, 0.5
TOP = 20  # tokens of each answer
LOGITS = ("raw_logits", "processed_logits")  # modes in which the engine gives no probabilities

log = logging.getLogger("canaryctl.engine")


async def why_refused(engine: Any, launch: Launch, handles: ActorHandles) -> str | None:
    """Why this replica may get no request, in one line; None: it may. Waits until the fleet answers."""
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await behaviour_of(engine)
    except Exception as exc:  # noqa: BLE001 - vLLM raises errors of every kind
        log.warning("first answers not compared", extra={"version": launch.version, "error": one_line(exc)})
        return None
    if found is None:
        log.info("no first answers to compare", extra={"version": launch.version})
        return None
    if found.is_damaged:
        return DAMAGED
    while True:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                fleet = await handles.get(FLEET)
                text: str | None = await fleet.compare.remote(launch, found)
                return text
        except AttributeError:  # a fleet actor of an earlier release
            return None
        except (RayError, ValueError, TimeoutError) as exc:
            handles.forget(FLEET)
            log.warning("fleet unreachable", extra={"error": one_line(exc)})
            await asyncio.sleep(RETRY_S)


async def behaviour_of(engine: Any) -> Behaviour | None:
    """Of a vLLM engine; None: it gives no probabilities of tokens."""
    config, tokenizer = engine.model_config, engine.get_tokenizer()
    top = TOP if config.max_logprobs == -1 else min(TOP, config.max_logprobs)
    if tokenizer is None or top < 1 or "generate" not in await engine.get_supported_tasks():
        return None
    prompts = [tokenizer.encode(text)[: config.max_model_len - 1] for text in PROMPTS]
    passes = [tuple([await _answer(engine, ids, top) for ids in prompts]) for _ in range(2)]
    if config.logprobs_mode in LOGITS:
        passes = [tuple(map(of_logits, one)) for one in passes]
    return Behaviour(passes[0], distance(*passes), _device())


async def _answer(engine: Any, ids: list[int], top: int) -> TokenShares:
    """The likeliest next tokens, alone in the engine: a batch of others may round differently."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=top)
    found: TokenShares = {}
    prompt = {"prompt_token_ids": ids}
    async for output in engine.generate(prompt, sampling, f"load-check-{uuid.uuid4().hex}"):
        for choice in output.outputs:
            if choice.logprobs:
                given = {int(token): float(one.logprob) for token, one in choice.logprobs[0].items()}
                found = {token: value for token, value in given.items() if value != float("-inf")}
    return found


def _device() -> str:
    """Kind of device, and the releases that compute on it."""
    import torch
    import vllm

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{name}, vLLM {vllm.__version__}, torch {torch.__version__}"
