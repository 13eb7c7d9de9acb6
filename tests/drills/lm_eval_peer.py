"""An iteration of a run scored by EleutherAI's lm_eval, on the problems and with the prompts of the run's evaluation.

    pip install lm_eval
    python tests/drills/lm_eval_peer.py --workdir=RUN [--iteration=best] [--split=test] [--problems=200]

The iteration's model is exported to Hugging Face format; lm_eval loads it with transformers and torch (float32) and
samples greedily. Printed are both accuracies and, for the problems on which they differ, both texts. lm_eval has the
strict reader's pattern as a regular expression. The exit status is 1 if a verdict differs although the texts are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from star_jax.evaluation.stored_run import StoredIteration, open_iteration

PATTERNS = {"commonsense_qa": r"\(([a-e])\)\.$", "gsm8k": r"#### ?(-?[0-9]+)\.?\s*$"}
TASK = """
task: star_run
dataset_path: json
dataset_kwargs: {{data_files: {{test: {problems}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: {stop}, max_gen_toks: {tokens}, do_sample: false}}
filter_list:
  - name: strict
    filter: [{{function: regex, regex_pattern: {pattern}, group_select: -1}}, {{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""


def main() -> int:
    """Prints the comparison; returns 1 if equal texts have different verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--iteration", default="best")
    parser.add_argument("--split", default="test")
    parser.add_argument("--problems", type=int, default=200)
    args = parser.parse_args()
    stored = open_iteration(args.workdir, args.iteration)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = run_lm_eval(stored, args, Path(scratch))
    file = args.workdir / f"iter_{stored.number:03d}" / f"eval_{args.split}.jsonl"
    ours = {record["problem_id"]: record for record in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    return compare({name: ours[name] for name in theirs}, theirs)


def run_lm_eval(stored: StoredIteration, args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Problem id -> what lm_eval sampled for it ("text") and whether it counts it as right ("right")."""
    problems = stored.problems(args.split)[: args.problems]
    rows = [{"id": p.id, "prompt": stored.prompts(p).prompt.text, "answer": p.answer} for p in problems]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = stored.task
    text = TASK.format(
        problems=json.dumps(str(folder / "problems.jsonl")),
        stop=json.dumps(list(task.stop)),
        tokens=stored.config.sampling.max_new_tokens or task.max_new_tokens,
        pattern=json.dumps(PATTERNS[stored.config.task["name"]]),
    )
    (folder / "star_run.yaml").write_text(text, encoding="utf-8")
    model = folder / "model"
    convert = ["-m", "star_jax.convert", f"--source={stored.directory}", "--source_format=orbax"]
    subprocess.run([sys.executable, *convert, f"--target={model}", "--target_format=hf"], check=True)
    command = [sys.executable, "-m", "lm_eval", "--model=hf", f"--model_args=pretrained={model},dtype=float32"]
    command += ["--tasks=star_run", f"--include_path={folder}", "--device=cpu", "--batch_size=8", "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    subprocess.run([*command, f"--output_path={folder / 'out'}"], check=True, env={**os.environ, **offline})
    (samples,) = (folder / "out").rglob("samples_star_run_*.jsonl")
    logged = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    return {
        sample["doc"]["id"]: {"text": sample["resps"][0][0], "right": sample["exact_match"] == 1.0} for sample in logged
    }


def compare(ours: dict[str, dict], theirs: dict[str, dict]) -> int:
    """Prints both accuracies and the differences; returns 1 if equal texts have different verdicts."""
    unequal, contradictions = 0, 0
    for name, record in ours.items():
        same = record["text"].rstrip() == theirs[name]["text"].rstrip()
        unequal += not same
        if (record["verdict"] == "right") != theirs[name]["right"]:
            contradictions += same
            print(f"{name}: star_jax {record['verdict']}, lm_eval {'right' if theirs[name]['right'] else 'wrong'}")
            print(f"  star_jax: {record['text']!r}\n  lm_eval:  {theirs[name]['text']!r}")
    right = sum(record["verdict"] == "right" for record in ours.values())
    print(f"{len(ours)} problems: star_jax {right / len(ours):.3f}, "
          f"lm_eval {sum(sample['right'] for sample in theirs.values()) / len(ours):.3f}; "
          f"{unequal} texts differ, {contradictions} verdicts differ on equal texts")  # fmt: skip
    return int(contradictions > 0)


if __name__ == "__main__":
    sys.exit(main())
