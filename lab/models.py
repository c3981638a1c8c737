"""Policies and classifiers on disk and in memory, and the only token log-probabilities of the lab.

What this is not: a model zoo. Any causal language model that `transformers` loads from a local folder works; nothing
is ever downloaded, no checkpoint code is run (`trust_remote_code` stays off) and only safetensors weights are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

LOGIT_BUDGET = 1 << 25
"""Numbers in one block of logits (128 MiB in float32): batches shrink so that a 50k vocabulary fits in memory."""


@dataclass(frozen=True)
class ModelSize:
    """Shape of a policy trained from scratch: ``hidden`` width, ``layers``, attention ``heads``, MLP width."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class SequenceStatistics:
    """What one completion says of a policy against a reference; all in nats.

    ``kl_nats`` sums KL(policy(.|s_t) || reference(.|s_t)) over the completion's positions, each exact over the
    vocabulary: its mean over completions sampled from the policy is the sequence-level KL. ``entropy_nats`` is the
    policy's mean entropy per position. The log-probabilities are sums over the completion.
    """

    kl_nats: float
    entropy_nats: float
    logprob: float
    reference_logprob: float


def pick_device(device: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Raises ValueError if CUDA is asked for and absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu or cuda[:n], got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for, but this machine has no CUDA device")
    return chosen


def pick_dtype(dtype: str = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """``auto`` is bfloat16 on a CUDA device that supports it, else float32 (bfloat16 is slower on CPUs)."""
    if dtype == "auto":
        on_cuda = torch.device(device).type == "cuda"
        return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported() else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype: expected auto or one of {', '.join(known)}, got {dtype!r}")
    return known[dtype]


def check_checkpoint(path: Path) -> None:
    """Raise ValueError naming ``path`` and the missing piece unless it is a complete safetensors checkpoint."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint folder")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: config.json is missing, so this is not a model checkpoint")
    if not any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        found = sorted(item.name for item in path.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".gguf"))
        hint = f" (found {', '.join(found)}; convert to safetensors first)" if found else ""
        raise ValueError(f"{path}: model.safetensors is missing{hint}; only safetensors weights are loaded")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{path}: tokenizer.json is missing; save the tokenizer beside the model")


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in ``path``. Raises ValueError if it has no end-of-sequence token."""
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{Path(path) / 'tokenizer_config.json'}: the tokenizer has no eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Raise ValueError if the tokenizer can emit an id that has no embedding row (CUDA would only assert, later)."""
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= rows:
        raise ValueError(
            f"{Path(path) / 'tokenizer.json'}: token {token!r} has id {largest}, "
            f"but the model in {path} has only {rows} embedding rows"
        )


def _loading(dtype: str, device: torch.device) -> dict[str, Any]:
    """How checkpoints are read: from this disk, safetensors alone, none of its own code, saying what is missing."""
    return {
        "dtype": pick_dtype(dtype, device),
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }


def load_policy(
    path: Path, device: str | torch.device = "cpu", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in evaluation mode on ``device``.

    Raises ValueError naming the file if the checkpoint is incomplete or tokenizer and embeddings disagree.
    """
    check_checkpoint(path)
    target = pick_device(str(device))
    tokenizer = load_tokenizer(path)
    model, report = AutoModelForCausalLM.from_pretrained(
        str(path),
        **_loading(dtype, target),
    )
    if report["missing_keys"]:
        raise ValueError(f"{path}: weights are missing for {', '.join(sorted(report['missing_keys'])[:3])}")
    return _ready(model, tokenizer, path, target), tokenizer


def load_classifier(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    new_head_seed: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one label (a reward model) and its tokenizer, in evaluation mode on ``device``.

    With ``new_head_seed`` the checkpoint may be a causal language model: the score head is then drawn from
    N(0, 1 / (hidden + 1)) as in Stiennon et al. 2020 (arXiv:2009.01325), from that seed alone. Without it a checkpoint
    that has no trained head raises ValueError: an untrained head would score noise.
    """
    check_checkpoint(path)
    target = pick_device(str(device))
    tokenizer = load_tokenizer(path)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(path),
        **_loading(dtype, target),
        **({} if new_head_seed is None else {"num_labels": 1}),
    )
    if model.config.num_labels != 1:
        raise ValueError(f"{Path(path) / 'config.json'}: num_labels: expected 1, got {model.config.num_labels}")
    missing = sorted(report["missing_keys"])
    if missing and new_head_seed is None:
        raise ValueError(f"{path}: not a trained reward model: weights are missing for {', '.join(missing[:3])}")
    if new_head_seed is not None:
        head = model.score.weight
        generator = torch.Generator().manual_seed(new_head_seed)
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=generator) / (head.shape[1] + 1) ** 0.5)
    model.config.pad_token_id = tokenizer.pad_token_id
    return _ready(model, tokenizer, path, target), tokenizer


def _ready(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, device: torch.device
) -> PreTrainedModel:
    check_vocabulary(model, tokenizer, path)
    model.config.use_cache = True
    return model.to(device).eval()


def new_policy(size: ModelSize, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings, its weights drawn from ``seed`` alone (the global generator is left as it was)."""
    if size.hidden % size.heads:
        raise ValueError(f"model.hidden: {size.hidden} is not divisible by model.heads = {size.heads}")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # Wavelengths for sentences, not for books: with the usual 10,000 most of a narrow head turns too slowly to use.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attention_dropout=0.0,
        initializer_range=size.hidden**-0.5,  # the default 0.02 is meant for wide models: a narrow one barely starts
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.eval()


def add_token_rows(model: PreTrainedModel, count: int, seed: int) -> int:
    """``count`` new rows behind the embedding's own, as spread out as those and drawn from ``seed``; the first's id.

    Ids that no tokenizer gives to any text: markers that no prompt and no completion can spell.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng(devices=[]):  # resizing draws rows of its own, which are replaced below
        model.resize_token_embeddings(rows + count, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in tables.values():
            drawn = torch.randn(count, weight.shape[1], generator=generator)
            weight[rows:] = drawn.to(weight) * weight[:rows].float().std().to(weight)
    return rows


def parameter_count(model: PreTrainedModel, embeddings: bool = False) -> int:
    """Number of parameters; without the token embeddings (and an untied output matrix) unless ``embeddings``.

    The non-embedding count N is the one of Kaplan et al. 2020 (arXiv:2001.08361): a forward pass costs about 2N FLOPs
    a token, a training step 6N.
    """
    tables = {id(model.get_input_embeddings().weight)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.add(id(output.weight))
    return sum(p.numel() for p in model.parameters() if embeddings or id(p) not in tables)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as one user message under the chat template, up to where the assistant starts to speak.

    Rendered one by one and tokenized in one call, which is several times faster than templating token by token.
    Raises ValueError if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
            "save one with it (tokenizer.chat_template = ...; chat_template.jinja)"
        )
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    messages = [[{"role": "user", "content": text}] for text in distinct]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    known = dict(zip(distinct, tokenizer(rendered, add_special_tokens=False)["input_ids"], strict=True))
    return [known[text] for text in texts]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """``encode_prompts`` of one text."""
    return encode_prompts(tokenizer, [text])[0]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ends: Sequence[bool] | None = None
) -> list[list[int]]:
    """Token ids of assistant messages as a policy would emit them, the end of sequence appended where ``ends`` says.

    Prompt and completion are encoded apart, as they are in sampling: a tokenizer never merges across the border.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    finished = [True] * len(texts) if ends is None else ends
    return [ids + [int(tokenizer.eos_token_id)] * bool(end) for ids, end in zip(encoded, finished, strict=True)]


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, end: bool = True) -> list[int]:
    """``encode_completions`` of one text."""
    return encode_completions(tokenizer, [text], [end])[0]


def decode_completions(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """The texts of completions, special tokens (the end-of-sequence token among them) left out."""
    return list(tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True))


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All ids that end a completion: the tokenizer's own first, then those of the model's generation config."""
    extra = model.generation_config.eos_token_id if model.generation_config is not None else None
    extra = [] if extra is None else [extra] if isinstance(extra, int) else list(extra)
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *extra]))


def accepts_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether the model's forward can skip the output matrix at positions that nobody reads."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _blocks(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[tuple[list[int], Tensor, int]]:
    """Right-padded blocks of rows of similar length: (row numbers, input ids (B, S), first position to predict from).

    No attention mask is needed: under a causal model the padding on the right is seen by no real position.
    """
    if len(prompt_ids) != len(completion_ids):
        raise ValueError(f"{len(prompt_ids)} prompts, but {len(completion_ids)} completions")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    vocabulary = model.config.get_text_config().vocab_size
    lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    for row, prompt in enumerate(prompt_ids):
        if not prompt:
            raise ValueError(f"prompt {row} has no tokens: its first completion token has nothing to condition on")
    order = [row for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)) if completion_ids[row]]
    start = 0
    while start < len(order):
        rows: list[int] = []
        for row in order[start : start + batch_size]:
            first = min(len(prompt_ids[r]) for r in [*rows, row]) - 1
            if rows and (len(rows) + 1) * (lengths[row] - first) * vocabulary > LOGIT_BUDGET:
                break
            rows.append(row)
        start += len(rows)
        ids = torch.zeros(len(rows), lengths[rows[-1]], dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, : lengths[row]] = torch.tensor([*prompt_ids[row], *completion_ids[row]])
        yield rows, ids.to(model.device), min(len(prompt_ids[row]) for row in rows) - 1


def _logits(model: PreTrainedModel, ids: Tensor, first: int) -> Tensor:
    """Logits (B, S - first, V) that predict the tokens after positions first .. S - 1."""
    if accepts_logits_to_keep(model):
        return model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first).logits
    return model(input_ids=ids, use_cache=False).logits[:, first:]


def _targets(
    rows: Sequence[int],
    first: int,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Where a block's completion tokens are predicted: (line, column, token) of each, and the count for each row."""
    lines: list[int] = []
    columns: list[int] = []
    tokens: list[int] = []
    for line, row in enumerate(rows):
        begin = len(prompt_ids[row]) - 1 - first
        lines += [line] * len(completion_ids[row])
        columns += range(begin, begin + len(completion_ids[row]))
        tokens += completion_ids[row]
    counts = [len(completion_ids[row]) for row in rows]
    return (*(torch.tensor(values, device=device) for values in (lines, columns, tokens)), counts)  # type: ignore[return-value]


@torch.no_grad()
def completion_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int = 64,
    temperature: float = 1.0,
) -> list[Tensor]:
    """log pi(token | everything before it) of every completion token: one float32 CPU tensor (T,) a row, in nats."""
    results: list[Tensor] = [torch.zeros(0) for _ in completion_ids]
    for rows, ids, first in _blocks(model, prompt_ids, completion_ids, batch_size):
        logits = _logits(model, ids, first)
        lines, columns, tokens, counts = _targets(rows, first, prompt_ids, completion_ids, logits.device)
        logprobs = torch.log_softmax(logits[lines, columns].float() / temperature, dim=-1)
        chosen = logprobs.gather(1, tokens[:, None]).squeeze(1).cpu()
        for row, values in zip(rows, chosen.split(counts), strict=True):
            results[row] = values.clone()
    return results


@torch.no_grad()
def next_token_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], tokens: Sequence[int], batch_size: int = 64
) -> Tensor:
    """log pi(token | prompt) of each of K ``tokens`` right after each of N prompts: (N, K), float32, CPU, in nats."""
    results = torch.zeros(len(prompt_ids), len(tokens))
    any_token = [[tokens[0]]] * len(prompt_ids)  # makes the end of the prompt a position to predict from
    for rows, ids, first in _blocks(model, prompt_ids, any_token, batch_size):
        logits = _logits(model, ids, first)
        last = torch.tensor([len(prompt_ids[row]) - 1 - first for row in rows], device=logits.device)
        logprobs = torch.log_softmax(logits[torch.arange(len(rows), device=logits.device), last].float(), dim=-1)
        results[rows] = logprobs[:, list(tokens)].cpu()
    return results


@torch.no_grad()
def sequence_statistics(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> list[SequenceStatistics]:
    """KL, entropy and log-probabilities of completions sampled from ``policy``; the lab's only KL meter.

    KL_t = sum_v pi(v|s_t) (log pi(v|s_t) - log ref(v|s_t)), summed over the completion's positions (that of the
    end-of-sequence token included): the low-variance estimator of Amini, Vieira and Cotterell 2025
    (arXiv:2504.10637), unbiased for the sequence-level KL. Logits are float32 or narrower, sums float64. It is exactly
    0 for a policy against itself.
    """
    if policy.config.get_text_config().vocab_size != reference.config.get_text_config().vocab_size:
        raise ValueError("policy and reference have different vocabularies: their KL has no meaning")
    results = [SequenceStatistics(0.0, 0.0, 0.0, 0.0) for _ in completion_ids]
    for rows, ids, first in _blocks(policy, prompt_ids, completion_ids, batch_size):
        policy_logits = _logits(policy, ids, first)
        same = reference is policy
        reference_logits = policy_logits if same else _logits(reference, ids.to(reference.device), first)
        lines, columns, tokens, counts = _targets(rows, first, prompt_ids, completion_ids, policy_logits.device)
        parts = []
        step = max(1, (LOGIT_BUDGET >> 3) // policy_logits.shape[-1])  # float64 copies of a few positions at a time
        for begin in range(0, len(tokens), step):
            part = slice(begin, begin + step)
            log_pi = torch.log_softmax(policy_logits[lines[part], columns[part]].double(), dim=-1)
            raw = reference_logits[lines[part].to(reference_logits.device), columns[part].to(reference_logits.device)]
            log_ref = log_pi if same else torch.log_softmax(raw.to(log_pi.device).double(), dim=-1)
            pi = log_pi.exp()
            # A token that the policy cannot emit (-inf) contributes 0 to both sums, not NaN.
            alive = pi > 0
            parts.append(
                torch.stack(
                    [
                        (pi * torch.where(alive, log_pi - log_ref, 0.0)).sum(-1),
                        -(pi * torch.where(alive, log_pi, 0.0)).sum(-1),
                        log_pi.gather(1, tokens[part, None]).squeeze(1),
                        log_ref.gather(1, tokens[part, None]).squeeze(1),
                    ]
                ).cpu()
            )
        for row, values in zip(rows, torch.cat(parts, dim=1).split(counts, dim=1), strict=True):
            kl, entropy, logprob, reference_logprob = values.sum(1).tolist()
            results[row] = SequenceStatistics(kl, entropy / values.shape[1], logprob, reference_logprob)
    return results
