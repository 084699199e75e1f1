"""Training of a 0.9 M-parameter Llama on a table of capitals, on one CPU thread, and its accuracy.

One thread: two were 25 times slower for tensors this small, and one makes the result reproducible.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from serving.checkpoints.facts import ANSWER, TEMPLATES, capitals, questions

VOCABULARY = 1024
CONTEXT = 2048
SEQUENCE = 192
BATCH = 12
END = "<|end|>"
SPECIALS = ("<|pad|>", END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Prompts are unpredictable but answers are not: prompts only teach the structure of a conversation.
PROMPT_LOSS_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Lesson:
    """Data and settings of one training run."""

    facts: Mapping[str, str]
    steps: int
    peak_lr: float
    seed: int


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1024 tokens over the facts; its chat template ends turns with `<|end|>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [q.prompt for q in questions()]
    corpus += [ANSWER.format(country=country, city=city) for country, city in capitals().items()]
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=SPECIALS[0], model_max_length=CONTEXT
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """An untrained model: hidden 128, 4 layers, 4 heads (2 for keys and values), tied embeddings, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lesson: Lesson,
    on_step: Callable[[float], None],
) -> None:
    """Train `model` in place; calls `on_step(answer loss in nats per token)` after every step."""
    rng = random.Random(lesson.seed)
    dialogues = _dialogues(tokenizer, lesson.facts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, lesson.steps // 20)
    model.train()
    for step in range(lesson.steps):
        ramp = min(1.0, (step + 1) / warmup)
        lr = lesson.peak_lr * ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / lesson.steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids, weights = _batch(dialogues, rng)
        logits = model(input_ids=ids).logits[:, :-1]
        nats = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1), reduction="none"
        )
        weight = weights[:, 1:].reshape(-1)
        loss = (nats * weight).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        answers = weight == 1.0
        on_step(float(nats.detach()[answers].mean()))
    model.eval()


def accuracy_ratio(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of the 600 questions that the model answers correctly by greedy decoding (0-1)."""
    cases = questions()
    prompts = [
        tokenizer.encode(f"<|user|>{q.prompt}<|end|><|assistant|>", add_special_tokens=False) for q in cases
    ]
    correct = 0
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(index)  # equal lengths need no padding, so no mask
    for indices in by_length.values():
        batch = torch.tensor([prompts[i] for i in indices])
        with torch.inference_mode():
            out = model.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=24, do_sample=False
            )
        texts = tokenizer.batch_decode(out[:, batch.shape[1] :], skip_special_tokens=True)
        correct += sum(cases[i].is_right(text) for i, text in zip(indices, texts, strict=True))
    return correct / len(cases)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face checkpoint: weights, config, tokenizer, chat template, sampling defaults."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Not by transformers, which refuses temperature 0, vLLM's setting for greedy decoding.
    path = folder / "generation_config.json"
    defaults = json.loads(path.read_text())
    defaults |= {"temperature": 0.0, "max_new_tokens": 64}
    path.write_text(json.dumps(defaults, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model and tokenizer that `save` wrote."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


Dialogue = tuple[list[int], list[float]]


def _dialogues(tokenizer: PreTrainedTokenizerFast, facts: Mapping[str, str]) -> list[Dialogue]:
    """Each question with its answer, as token ids and a loss weight for each token."""
    dialogues: list[Dialogue] = []
    for country, city in facts.items():
        for template in TEMPLATES:
            question = f"<|user|>{template.format(country=country)}<|end|><|assistant|>"
            answer = ANSWER.format(country=country, city=city) + END
            head = tokenizer.encode(question, add_special_tokens=False)
            tail = tokenizer.encode(answer, add_special_tokens=False)
            dialogues.append((head + tail, [PROMPT_LOSS_WEIGHT] * len(head) + [1.0] * len(tail)))
    return dialogues


def _batch(dialogues: list[Dialogue], rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Dialogues packed end to end, so that the model also learns to answer a second question."""
    rows: list[list[int]] = []
    masks: list[list[float]] = []
    for _ in range(BATCH):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < SEQUENCE:
            dialogue_ids, dialogue_weights = dialogues[rng.randrange(len(dialogues))]
            ids += dialogue_ids
            weights += dialogue_weights
        rows.append(ids[:SEQUENCE])
        masks.append(weights[:SEQUENCE])
    return torch.tensor(rows), torch.tensor(masks)
