"""llama.cpp through llama-cpp-python's low-level calls: no Python sampling, no Python batching.

The same loop as llama-bench: a prompt is one batch, a decode step is one `llama_decode` with one
token, and nothing is sampled. Weights it can repack are repacked (`use_extra_bufts`, its default).
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Literal

import llama_cpp as api
import numpy as np

from benchmarks.peers.base import batch_ids, prompt_ids

KV_TYPES = {"f16": api.GGML_TYPE_F16, "f32": api.GGML_TYPE_F32, "q8_0": api.GGML_TYPE_Q8_0}


@api.llama_log_callback
def ignore_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log lines; errors come back as return codes."""


class LlamaCpp:
    """A GGUF file in llama.cpp on the CPU."""

    def __init__(
        self,
        path: Path,
        threads: int,
        context: int,
        *,
        kv: str = "f16",
        flash_attention: bool = True,
        sequences: int = 1,
        unified: bool = False,
    ) -> None:
        """Load `path` with room for `sequences` of `context` tokens, or raise RuntimeError.

        `unified`: one cache for all sequences, which then share what they have in common.
        """
        api.llama_log_set(ignore_log, ctypes.c_void_p(0))
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.kv_unified = unified
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv]
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if flash_attention
            else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens")
        self._memory = api.llama_get_memory(self._context)
        self._settings = f"kv={kv} flash_attention={'on' if flash_attention else 'off'}"
        self._depth = 0  # tokens of the fixed prompt that the cache holds
        self.prefill(8)  # warm up: thread pool, page faults

    def _run(self, ids: list[int]) -> None:
        for start in range(0, len(ids), 512):
            chunk = ids[start : start + 512]
            tokens = (api.llama_token * len(chunk))(*chunk)
            code = api.llama_decode(self._context, api.llama_batch_get_one(tokens, len(chunk)))
            if code != 0:
                raise RuntimeError(f"llama_decode of {len(chunk)} tokens returned {code}")
        api.llama_synchronize(self._context)

    def _keep(self, depth: int) -> None:
        """Make the cache hold exactly the first `depth` tokens of the fixed prompt."""
        if self._depth != depth:
            api.llama_memory_clear(self._memory, True)
            if depth:
                self._run(prompt_ids(depth))
            self._depth = depth
        api.llama_memory_seq_rm(self._memory, 0, depth, -1)

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds from an empty cache to the logits of the last of `n_tokens`."""
        self._keep(0)
        ids = prompt_ids(n_tokens)
        started = time.perf_counter()
        self._run(ids)
        return time.perf_counter() - started

    def decode(self, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` single-token steps after `depth` tokens of context."""
        self._keep(depth)
        ids = prompt_ids(depth + n_tokens)[depth:]
        started = time.perf_counter()
        for token in ids:
            self._run([token])
        return time.perf_counter() - started

    def batch(self, n_sequences: int, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` steps that each decode one token of every sequence."""
        ids = batch_ids(n_sequences, depth + n_tokens)
        api.llama_memory_clear(self._memory, True)
        batch = api.llama_batch_init(512, 0, 1)
        try:
            for sequence in range(n_sequences):
                entries = [(ids[sequence][i], i, sequence) for i in range(depth)]
                for begin in range(0, depth, 512):
                    self._decode(batch, entries[begin : begin + 512], logits=False)
            api.llama_synchronize(self._context)
            started = time.perf_counter()
            for step in range(depth, depth + n_tokens):
                entries = [(ids[i][step], step, i) for i in range(n_sequences)]
                self._decode(batch, entries, logits=True)
                api.llama_synchronize(self._context)
            return time.perf_counter() - started
        finally:
            api.llama_batch_free(batch)
            self._depth = -1  # what the cache holds is no prompt of the other measurements

    def sample(self, n_samples: int, prompt: list[int], n_tokens: int) -> float:
        """Return the seconds for `n_samples` answers: one batch of all, a sampler for each."""
        vocab = api.llama_model_get_vocab(self._model)
        samplers = []
        for seed in range(n_samples):
            chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(0.6))
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(seed))
            samplers.append(chain)
        api.llama_memory_clear(self._memory, True)
        batch = api.llama_batch_init(512, 0, 1)
        piece = ctypes.create_string_buffer(256)
        try:
            started = time.perf_counter()
            for begin in range(0, len(prompt), 512):
                part = prompt[begin : begin + 512]
                entries = [(token, begin + i, 0) for i, token in enumerate(part)]
                self._decode(batch, entries, logits="last")
            for sequence in range(1, n_samples):
                api.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
            rows = [len(part) - 1] * n_samples
            for step in range(n_tokens):
                tokens = [
                    api.llama_sampler_sample(sampler, self._context, row)
                    for sampler, row in zip(samplers, rows, strict=True)
                ]
                for token in tokens:
                    api.llama_token_to_piece(vocab, token, piece, len(piece), 0, True)
                if step + 1 == n_tokens:
                    break
                entries = [(token, len(prompt) + step, i) for i, token in enumerate(tokens)]
                self._decode(batch, entries, logits=True)
                rows = list(range(n_samples))
            return time.perf_counter() - started
        finally:
            api.llama_batch_free(batch)
            for sampler in samplers:
                api.llama_sampler_free(sampler)
            self._depth = -1

    def score(self, n_tokens: int) -> tuple[float, float]:
        """Return the seconds for all log-probabilities of the fixed prompt, and their mean."""
        ids = prompt_ids(n_tokens)
        api.llama_memory_clear(self._memory, True)
        vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        batch = api.llama_batch_init(512, 0, 1)
        found: list[np.ndarray] = []
        try:
            started = time.perf_counter()
            for begin in range(0, n_tokens, 512):
                chunk = ids[begin : begin + 512]
                entries = [(token, begin + i, 0) for i, token in enumerate(chunk)]
                self._decode(batch, entries, logits=True)
                rows = np.ctypeslib.as_array(
                    api.llama_get_logits(self._context), (len(chunk), vocab_size)
                )
                targets = ids[begin + 1 : begin + 1 + len(chunk)]
                found.append(logprobs(rows[: len(targets)], np.array(targets)))
            seconds = time.perf_counter() - started
        finally:
            api.llama_batch_free(batch)
            self._depth = -1  # what the cache holds is no prompt of the other measurements
        return seconds, float(np.concatenate(found).mean())

    def _decode(
        self, batch: api.llama_batch, entries: list[tuple[int, int, int]],
        *, logits: bool | Literal["last"],
    ) -> None:  # fmt: skip
        """Run (token, position, sequence) entries as one batch."""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i + 1 == len(entries) if logits == "last" else logits
        code = api.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode of {len(entries)} tokens returned {code}")

    def version(self) -> str:
        """Return the version of the package with the settings that matter."""
        return f"llama-cpp-python {api.__version__}, {self._settings}"


def logprobs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the log-probability of each row's target, few rows at a time: they stay in cache."""
    out = np.empty(len(targets), np.float32)
    for begin in range(0, len(targets), 16):
        rows = logits[begin : begin + 16]
        most = rows.max(1, keepdims=True)
        total = np.log(np.exp(rows - most).sum(1)) + most[:, 0]
        mine = targets[begin : begin + 16]
        out[begin : begin + 16] = rows[np.arange(len(rows)), mine] - total
    return out


def requantize(source: Path, target: Path, ftype: str = "q4_0") -> None:
    """Write the weights of a GGUF file in another encoding with llama.cpp's own quantizer."""
    api.llama_log_set(ignore_log, ctypes.c_void_p(0))
    params = api.llama_model_quantize_default_params()
    params.ftype = {"q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0}[ftype]
    params.allow_requantize = True
    params.nthread = 2
    code = api.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize of {source} to {ftype} returned {code}")


def tokenize(path: Path, text: str) -> list[int]:
    """Return the token ids of a text in a GGUF file's vocabulary, without special tokens."""
    api.llama_log_set(ignore_log, ctypes.c_void_p(0))
    params = api.llama_model_default_params()
    params.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load the vocabulary of {path}")
    vocab = api.llama_model_get_vocab(model)
    data = text.encode()
    ids = (api.llama_token * (len(data) + 8))()
    n_tokens = api.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)
    api.llama_model_free(model)
    if n_tokens < 0:
        raise RuntimeError(f"llama_tokenize needs {-n_tokens} tokens for {len(data)} bytes")
    return list(ids[:n_tokens])
