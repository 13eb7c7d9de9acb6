"""Runs three small runs and digests everything they produce: the same digests before and after a change of structure.

    python tests/drills/golden_run.py --code=OTHER --save=old.json        runs another checkout's code
    python tests/drills/golden_run.py --against=old.json                  runs this checkout's, prints a table

    demo   configs/arithmetic.py, first iteration
    qa     configs/commonsense_qa.py on the real files (--data), two iterations of a random two-layer GPT-J
    drill  the kill drill's configuration, two iterations

A digest covers samples, rationalizations, kept examples, evaluations (per file) and the parameters of every iteration.
Fields are compared by their first names (RENAMED); fields added since are left out. Floating-point sums differ between
machines, so both sides must run on the same one. The exit status is 1 if a digest differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
RENAMED = {
    "sample_index": "draw",
    "samples_per_problem": "draws",
    "samples": "draws",
    "by_category": "by_class",
    "mean_of_categories": "mean_of_classes",
    "majority_by_category": "majority_by_class",
    "kept_by_category": "kept_by_class",
    "problems_by_category": "problems_by_class",
    "truncated": "cut_off",
}
ADDED = {
    "kept_retokenized",
    "retokenized",
    "retokenized_problems",
    "loss_weight",
    "prefix_length",
    "problem_fingerprint",
    "problem_set",
    "right_leniently",
    "lenient",
    "anchoring",
    "sampled_from",
}
FILES = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "eval_dev.jsonl", "eval_dev.json")
DEMO = ["--config=configs/arithmetic.py", "--config.star.iterations=1", "--config.tensorboard=False"]
QA_SIZES = dict(n_layer=2, n_embd=16, n_head=2, n_inner=32, rotary_dim=4, vocab_size=50400, n_positions=2048)
QA_TOKENS = {" A": 2, " B": 2, " C": 2, " D": 2, " E": 2, "\n": 10}  # token -> how often it is sampled


def main() -> int:
    """Prints the digests, or the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose code runs (default: this one)")
    parser.add_argument("--runs", default="drill,qa,demo", help="runs to do, with commas between")
    parser.add_argument("--data", type=Path, default=os.environ.get("STAR_DATA_DIR", ROOT.parent / "shared" / "data"))
    parser.add_argument("--save", type=Path, help="a JSON file for the digests")
    parser.add_argument("--against", type=Path, help="a JSON file of digests to compare with")
    args = parser.parse_args()
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.runs.split(","):
            started = time.monotonic()
            workdir = RUNS[name](args.code.absolute(), Path(folder), Path(args.data).absolute())
            digests |= {f"{name}/{file}": digest for file, digest in digests_of(workdir).items()}
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if args.save:
        args.save.write_text(json.dumps(digests, indent=1) + "\n")
    stored = json.loads(args.against.read_text()) if args.against else {}
    stored = {name: digest for name, digest in stored.items() if name.split("/")[0] in args.runs.split(",")}
    differing = 0
    for name in sorted({*digests, *stored}):
        columns = [digests.get(name, "missing")]
        if args.against:
            columns = [stored.get(name, "missing"), *columns]
            columns.append("equal" if columns[0] == columns[1] else "DIFFERS")
            differing += columns[-1] != "equal"
        print(f"{name:48}" + "  ".join(columns))
    return int(differing > 0)


def run(code: Path, workdir: Path, *flags: str) -> Path:
    env = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "star_jax.main", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return workdir


def run_demo(code: Path, folder: Path, data: Path) -> Path:
    return run(code, folder / "demo", *DEMO)


def run_drill(code: Path, folder: Path, data: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests" / "drills"))
    import kill_drill

    base = ("base.stages=({'steps':400,'learning_rate':0.01,'gold':(0.4,0.1)},)", "base.examples=400")
    flags = [f"--config.{name}" for name in (*kill_drill.SMALL, *base)]
    return run(code, folder / "drill", "--config=configs/arithmetic.py", *flags)


def run_qa(code: Path, folder: Path, data: Path) -> Path:
    """Such a model never reasons. Its head's bias leaves a few tokens, so some completions are right by chance."""
    write_qa_base(folder / "qa_base", data / "gpt2")
    per_problem = "draws" if (code / "star_jax" / "star.py").exists() else "samples_per_problem"
    # The first reader was lenient: the model's letters have no brackets.
    rule = ["--config.task.answer_rule=lenient"] if (code / "star_jax/tasks/answers/folding.py").exists() else []
    return run(
        code, folder / "qa", "--config=configs/commonsense_qa.py", f"--config.base.path={folder / 'qa_base'}",
        f"--config.task.data_dir={data / 'commonsense_qa'}", "--config.star.iterations=2",
        "--config.evaluation.problems=50", "--config.star.problems_per_iteration=50",
        f"--config.star.{per_problem}=4", "--config.sampling.temperature=1.0",
        "--config.sampling.slots=56", "--config.sampling.queue=128", "--config.sampling.max_new_tokens=12",
        "--config.star.steps=3", "--config.train.batch_rows=1", "--config.prompt.shots=2",
        "--config.evaluation.report_split=", "--config.star.keep_weights=0", "--config.tensorboard=False", *rule,
    )  # fmt: skip


def write_qa_base(folder: Path, tokenizer: Path) -> None:
    """A GPT-J directory as transformers writes it, made without any code of this package."""
    from safetensors.numpy import save_file
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir()
    sizes, rng = QA_SIZES, np.random.default_rng(0)
    d, f, v = sizes["n_embd"], sizes["n_inner"], sizes["vocab_size"]
    encoder = ByteLevelBPETokenizer(str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt"))
    encoder.add_special_tokens(["<|endoftext|>"])
    encoder.save(str(folder / "tokenizer.json"))
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (v, d), "lm_head.weight": (v, d)}
    for n in range(sizes["n_layer"]):
        at = f"transformer.h.{n}"
        shapes |= {f"{at}.attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")}
        shapes |= {f"{at}.mlp.fc_in.weight": (f, d), f"{at}.mlp.fc_in.bias": (f,)}
        shapes |= {f"{at}.mlp.fc_out.weight": (d, f), f"{at}.mlp.fc_out.bias": (d,)}
        shapes |= {f"{at}.ln_1.weight": (d,), f"{at}.ln_1.bias": (d,)}
    shapes |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    tensors = {name: (0.05 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    bias = np.full(v, -8.0, np.float32)
    for text, share in QA_TOKENS.items():
        (token,) = encoder.encode(text).ids
        bias[token] = 6.0 + np.log(share)
    save_file({**tensors, "lm_head.bias": bias}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **sizes, "model_type": "gptj", "architectures": ["GPTJForCausalLM"], "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


RUNS = {"demo": run_demo, "qa": run_qa, "drill": run_drill}


def digests_of(workdir: Path) -> dict[str, str]:
    """Path in the run directory -> digest, for every file of FILES and for every model's parameters."""
    digests: dict[str, str] = {}
    for folder in sorted(workdir.glob("iter_*")):
        for name in FILES:
            if (folder / name).exists():
                lines = (
                    (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
                )
                content = "\n".join(json.dumps(first_format(json.loads(line)), sort_keys=True) for line in lines)
                digests[f"{folder.name}/{name}"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    for path in sorted(workdir.rglob("model.json")):
        digests[f"{path.parent.relative_to(workdir)} parameters"] = json.loads(path.read_text())["fingerprint"]
    return digests


def first_format(value: Any) -> Any:
    """A JSON value with the field names and verdicts of the first format, without what was added since."""
    if isinstance(value, dict):
        value = {RENAMED.get(key, key): first_format(item) for key, item in value.items() if key not in ADDED}
        return {key: "" if key == "verdict" and item is None else item for key, item in value.items()}
    if isinstance(value, list):
        return [first_format(item) for item in value]
    return RENAMED.get(value, value) if value == "truncated" else value


if __name__ == "__main__":
    sys.exit(main())
