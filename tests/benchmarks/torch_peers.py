"""transformers' ways to sample greedily after a shared few-shot prompt, from the usual to the fastest.

generate    `model.generate` with the whole prompt in every row, left-padded batches
static      the prefix encoded once and copied to every row of a StaticCache, a loop of forward passes
compiled    the same, each decode step under torch.compile: the fastest that transformers offers
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from star_jax.models.decoder import Params
from star_jax.models.spec import DecoderSpec
from star_jax.weights.sources import hf


def load(spec: DecoderSpec, params: Params) -> torch.nn.Module:
    """star_jax's weights as a model of transformers, float32."""
    with tempfile.TemporaryDirectory() as folder:
        hf.save(Path(folder) / "model", spec, params, None, np.dtype(np.float32))
        return transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()


@torch.inference_mode()
def generate(model, prefix: list[int], bodies: list[list[int]], new_tokens: int, batch: int) -> np.ndarray:
    """Tokens [len(bodies), new_tokens] by model.generate."""
    tokens = []
    for start in range(0, len(bodies), batch):
        rows = [prefix + body for body in bodies[start : start + batch]]
        ids, mask = _left_padded(rows, max(map(len, rows)))
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        tokens.append(out[:, ids.shape[1] :].numpy())
    return np.concatenate(tokens)


class StaticPrefix:
    """Rows of a StaticCache after one prefix; `compiled`: each decode step under torch.compile."""

    def __init__(self, model, batch: int, length: int, compiled: bool) -> None:
        """`length`: tokens of the longest row, including prefix and new tokens."""
        self.model, self.batch, self.length = model, batch, length
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=length)
        self.step = torch.compile(self._step, dynamic=False) if compiled else self._step

    @torch.inference_mode()
    def sample(self, prefix: list[int], bodies: list[list[int]], new_tokens: int) -> np.ndarray:
        """Tokens [len(bodies), new_tokens]."""
        shared = transformers.DynamicCache(config=self.model.config)
        self.model.base_model(torch.tensor([prefix]), cache=shared, use_cache=True)
        tokens = [
            self._batch(shared, len(prefix), bodies[start : start + self.batch], new_tokens)
            for start in range(0, len(bodies), self.batch)
        ]
        return np.concatenate(tokens)

    def _batch(self, shared, prefix: int, rows: list[list[int]], new_tokens: int) -> np.ndarray:
        body_tokens = max(map(len, rows))
        rows = rows + [rows[-1]] * (self.batch - len(rows))
        ids, real = _left_padded(rows, body_tokens)
        mask = torch.cat([torch.ones(self.batch, prefix, dtype=torch.long), real], dim=1)
        mask = torch.nn.functional.pad(
            mask, (0, self.length - mask.shape[1]), value=1
        )  # unwritten slots: the causal mask hides them
        for into, layer in zip(self.cache.layers, shared.layers, strict=True):
            copies = layer.keys.expand(self.batch, -1, -1, -1), layer.values.expand(self.batch, -1, -1, -1)
            if into.is_initialized:
                into.cumulative_length.zero_()
            into.update(*copies)
        positions = prefix + (real.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(
            ids, cache=self.cache, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        ).logits
        position, tokens = positions[:, -1:], []
        for _ in range(new_tokens):
            token = logits[:, -1:].argmax(dim=-1)
            tokens.append(token)
            if len(tokens) == new_tokens:
                return torch.cat(tokens, dim=1)[: len(rows)].numpy()
            position = position + 1
            logits = self.step(token, mask, position)
        raise AssertionError("new_tokens < 1")

    def _step(self, token, mask, position):
        return self.model(token, cache=self.cache, attention_mask=mask, position_ids=position, use_cache=True).logits


def _left_padded(rows: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) [len(rows), length]."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :], mask[i, length - len(row) :] = torch.tensor(row), 1
    return ids, mask
