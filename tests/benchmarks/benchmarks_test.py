"""tests/benchmarks: every script runs at a tiny size and prints its tables."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from star_jax.algorithms import budget, star
from star_jax.config import GPTJ_6B, ModelConfig
from star_jax.models import families
from star_jax.weights.sources import hf
from tests.support.families import tiny_spec
from tests.support.models import numpy_params
from tests.support.runs import small_config
from tests.support.tokenizers import trained

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parents[1]
GPTJ = ["--layers=2", "--d_model=64", "--problems=12", "--slots=4", "--new_tokens=8", "--prefix=32", "--body=16",
        "--rows=2", "--row_tokens=64", "--steps=2", "--probe_mib=4", "--probe_side=64"]  # fmt: skip


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):  # as where it is run as a script
        spec.loader.exec_module(module)
    return module


def run(script: str, *flags: str) -> str:
    """Standard output of a script on one device."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, BENCHMARKS / script, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_iteration_s_table_shows_where_the_time_goes(tmp_path, capsys):
    """From a tiny base; every phase has a row, and everything is compiled by the end of iteration 1."""
    star.run(small_config(star__iterations=0), tmp_path / "run")
    flags = ["--digits=2", "--problems=60", "--steps=3", "--iterations=2"]
    load("iteration").main([f"--base={tmp_path / 'run' / 'base'}", *flags])
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    for name in ("sample", "rationalize", "filter", "pack", "load", "fine_tune", "save", "evaluate", "report", "other"):
        assert re.fullmatch(rf"{name:14}( +\d+\.\d\d s +\d+\.\d%){{3}}", rows[name]), printed
    assert "compilations after iteration 1: 0 (bar: 0)" in printed
    assert re.search(r"^storing  .* s +[0-9.]+%", printed, re.MULTILINE) and "run_dir and checkpoints: " in printed
    shares = [float(share) for share in re.findall(r"([\d.]+)%", rows["outside"])]
    assert all(0 < share < 100 for share in shares)


@pytest.mark.slow
def test_all_sides_of_the_sampling_pass_sample_the_same_tokens(shared_dir):
    """The plain loop's tokens are ours; for texts that stop, the script asserts that refilling changes no token."""
    data = [f"--data={shared_dir / 'data/commonsense_qa'}", f"--tokenizer={shared_dir / 'data/gpt2'}"]
    sizes = ("layers=1", "problems=4", "new_tokens=4", "slots=4", "stopping_problems=6", "runs=1", "peers=plain")
    printed = run("sampling_pass.py", *data, *(f"--{size}" for size in sizes))
    plain = next(line for line in printed.splitlines() if line.startswith("plain JAX loop, batch 4"))
    assert plain.split()[-1] == "100.00%"
    assert "6 problems that stop after" in printed and "a queue for each set of slots" in printed


@pytest.mark.slow
def test_the_sampler_s_table_at_a_tiny_size():
    """The script asserts that both sides sample the same tokens."""
    printed = run("sampler.py", "--problems=8", "--slots=4", "--shots=1")
    assert re.fullmatch(r"plain / ours: [\d.]+", printed.splitlines()[-1])


@pytest.mark.slow
def test_both_sides_of_the_train_step_have_the_same_losses():
    """The script asserts that; the table ends with the ratios."""
    pytest.importorskip("torch", reason="transformers' side needs torch")
    pytest.importorskip("transformers", reason="transformers is the other side")
    sizes = ("layers=2", "d_model=32", "heads=2", "vocabulary=400", "rows=2", "row_tokens=40", "steps=1")
    printed = run("train_step.py", *(f"--{size}" for size in sizes))
    assert "2 rows of 40 tokens, 32 of 80 with loss" in printed
    last = printed.splitlines()[-1]
    assert re.fullmatch(r"ours / transformers: [\d.]+ x the tokens/s, -?[\d.]+ x the memory", last), last


@pytest.mark.slow
def test_a_model_of_another_family_takes_the_same_steps(tmp_path):
    pytest.importorskip("torch", reason="transformers' side needs torch")
    pytest.importorskip("transformers", reason="transformers is the other side")
    spec = tiny_spec("llama")
    hf.save(tmp_path / "model", spec, numpy_params(spec), None, np.dtype(np.float32))
    printed = run("train_step.py", f"--model={tmp_path / 'model'}", "--rows=2", "--row_tokens=40", "--steps=1")
    assert f"{budget.parameter_count(spec):,} parameters" in printed and "x the memory" in printed


@pytest.mark.slow
def test_llama_cpp_s_table_with_a_program_in_its_place(tmp_path):
    """The program here is a stand-in that takes 2 s for a prompt and 6 s for the new tokens of a row."""
    words, bench = trained("llama3"), tmp_path / "llama-batched-bench"
    spec = dataclasses.replace(tiny_spec("llama"), vocab_size=words.vocab_size)
    hf.save(tmp_path / "model", spec, numpy_params(spec), words, np.dtype(np.float32))
    bench.write_text(
        f"#!{sys.executable}\nimport json, sys\nargs = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "rows = int(args['-npl'])\nassert int(args['-c']) == rows * 24 and args['-npp'] == '16'\n"
        "print('loaded')\nprint(json.dumps({'t_pp': 2.0 * rows, 't_tg': 6.0 * rows}))\n"
    )
    bench.chmod(0o755)
    flags = [f"--bench={bench}", f"--model={tmp_path / 'model'}", "--gguf=a.gguf,b.gguf", "--rows=1,3", "--runs=1"]
    printed = run("llama_cpp.py", *flags, "--prompt=16", "--new_tokens=8")
    rows = re.findall(r"^ +(\d+) +(\d+) +\d+% +1 +[\d.]+ +1 +[\d.]+$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "3"] and all(int(row[1]) > 1 for row in rows), printed


@pytest.mark.slow
def test_the_report_browser_s_table_at_a_tiny_size(capsys):
    """Every action has its times; without Chromium only the sizes are printed."""
    pytest.importorskip("playwright", reason="needs playwright (pip install -e '.[test]')")
    load("report_browser").main(["--problems=60", "--train_problems=30", "--iterations=1", "--repeats=1"])
    printed = capsys.readouterr().out
    assert re.search(r"^page 0\.\d\d MB; beside it 0 files, 0\.00 MB$", printed, re.MULTILINE), printed
    if "no times: none of" not in printed:
        rows = re.findall(r"^  (\S.*?) {2,}\d+ +\d+ +\d+$", printed, re.MULTILINE)
        assert len(rows) == 2 * (7 + 2 + 2) and {"search: Reason", "page turned", "history"} <= set(rows), printed
        assert re.search(r"^slowest answer \d+ ms: (under|OVER) the bar of 300 ms$", printed, re.MULTILINE)


@pytest.mark.slow
def test_gpt_j_s_tables_at_a_tiny_size(capsys):
    load("gptj").main([*GPTJ, "--torch_device=cpu"])
    printed = capsys.readouterr().out
    numbers = r"[\d,]+(?:\.\d+)?"
    for line in (
        rf"matrix product {numbers} TFLOP/s, copy {numbers} TB/s",
        rf"decode: +{numbers} tokens/s, -?{numbers} ms per step; floor {numbers} ms \({numbers} GB\), "
        rf"-?{numbers}% of it; products {numbers} ms",
        rf"prefill: +{numbers} tokens/s, {numbers} TFLOP/s, {numbers}% of the matrix rate",
        rf"bfloat16 weights, bfloat16 first moment, remat full: {numbers} \+ {numbers} GiB, fits",
        rf"first {numbers} s, then {numbers} s; {numbers} tokens/s; MFU {numbers}%, with recomputation {numbers}%",
        rf"one loop, 12 problems, 2 steps: {numbers} s: sample {numbers}, rationalize {numbers}, load {numbers}, "
        rf"fine_tune {numbers}  \(bar: 180 s on an H200",
    ):
        assert re.search(line, printed), (line, printed)
    assert re.search(r"transformers' generate: (4 rows, .* new tokens/s|torch or transformers is absent)", printed)


@pytest.mark.slow
def test_the_gpu_models_tables_at_a_tiny_size(capsys):
    """The script asserts that the kernels, emulated here, compute what the dense backend does."""
    sizes = ["--layers=2", "--width=64", "--slots=4", "--prefix=32", "--body=16", "--new_tokens=8", "--rows=2",
             "--row_tokens=64", "--steps=2", "--probe_mib=4", "--probe_side=64", "--heads=4",
             "--slot_count=24", "--limit=3000"]  # fmt: skip
    load("gpu_models").main(sizes)
    printed = capsys.readouterr().out
    rows = re.findall(r"^ +(64|80|128|256) +[14] +(?:0|24) +0\.0\d+", printed, re.MULTILINE)
    assert len(rows) == 4 * 3, printed
    numbers = r"-?[\d,]+(?:\.\d+)?"
    for line in (
        rf"decode: +{numbers} tokens/s, {numbers} ms per step; floor {numbers} ms, {numbers}% of the bandwidth",
        rf"prefill: +{numbers} tokens/s, {numbers} TFLOP/s, {numbers}% of the matrix rate",
        rf"train step, 2 of 2 layers, 2 x 64 tokens, float32 Adam, remat full, loss {numbers}",
        rf"first {numbers} s, then {numbers} s; {numbers} tokens/s; MFU {numbers}% \(goal 50 %\)",
    ):
        assert len(re.findall(line, printed)) == 2, (line, printed)  # of GPT-J and of Llama


@pytest.mark.slow
def test_a_second_start_reads_compiled_programs():
    """Two starts of a tiny model: every phase has a row, and the second one finds compiled programs."""
    phases = load("startup").PHASES
    flags = ["--model=gpt-2", "--layers=2", "--prefix=32", "--body=16", "--slots=4", "--new_tokens=8"]
    printed = run("startup.py", *flags)
    tables = [[line.split() for line in table.splitlines()] for table in printed.split("second start")]
    first, second = ({row[0]: [float(x) for x in row[1:]] for row in rows if row[0] in phases} for rows in tables)
    for table in (first, second):
        assert list(table) == list(phases) and all(len(row) == 6 for row in table.values()), printed
    assert first["engine"][5] == 0 and second["engine"][5] >= 1, printed


def test_gpt_j_s_benchmark_needs_neither_seqio_nor_tensorflow_nor_ml_collections():
    """A machine with a GPU may have nothing but jax, flax, optax and orbax."""
    hide = "for name in ('seqio', 'tensorflow', 'clu', 'ml_collections', 'tqdm', 'torch'): sys.modules[name] = None"
    find = "sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[2])"
    code = f"import sys\n{hide}\n{find}\nimport gptj, star_jax.weights.checkpoint"
    paths = [str(BENCHMARKS), str(ROOT)]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_least_work_of_gpt_j_6b_by_hand():
    """12.1 GB of bfloat16 weights less the embedding's 0.4, and 458,752 bytes of keys and values for each token."""
    least_work = load("least_work")
    cfg = ModelConfig(**GPTJ_6B, compute_dtype="bfloat16")
    lengths = budget.Lengths(prefix=785, body=55, new=96)
    weights = 2 * (budget.parameter_count(families.spec_of(cfg)) - 50400 * 4096)
    assert weights == pytest.approx(12.1e9 - 0.413e9, rel=2e-3)
    blocks, head = 28 * 12 * 4096**2, 50400 * 4096  # biases and norms are a thousandth
    token_flops = 2 * (blocks + head) + 4 * 28 * 4096 * (785 + 55 + 95 / 2)
    for slots in (64, 256, 512):
        work = least_work.sampling(families.build(cfg), slots, slots, lengths)
        assert work.decode_steps == 95
        assert work.decode_bytes / 95 == pytest.approx(weights + 458_752 * (785 + slots * (55 + 48)))
        assert work.decode_flops == pytest.approx(slots * 95 * token_flops, rel=1e-3)
        twice = least_work.sampling(families.build(cfg), 2 * slots, slots, lengths)
        assert twice.decode_bytes == 2 * work.decode_bytes and twice.decode_flops == 2 * work.decode_flops


def test_the_demos_seeds_are_summed_up_and_held_to_their_bounds(tmp_path, capsys):
    demo_seeds = load("demo_seeds")

    def make(arm: str, seed: int, *accuracies: float) -> None:
        for n, accuracy in enumerate(accuracies):
            iteration = tmp_path / "thread" / f"{arm}_{seed}" / f"iter_{n:03d}"
            iteration.mkdir(parents=True)
            by_category = {"1 digit": {"accuracy": 1.0}, "2 digits": {"accuracy": accuracy}}
            (iteration / "eval_dev.json").write_text(json.dumps({"by_category": by_category}))
        (iteration.parent / "report.html").touch()

    make("rationalization", 0, 0.0, 0.92, 1.0)
    make("rationalization", 1, 0.1, 0.9, 0.96)
    assert demo_seeds.summary(tmp_path) == 0
    assert "| 2 seeds | 0.50–0.55 -> 0.95–0.96 -> 0.98–1.00 | 1.00 0.96–1.00 |" in capsys.readouterr().out
    make("no_rationalization", 0, 0.0, 0.0, 0.0)
    assert demo_seeds.summary(tmp_path) == 1  # 0.5 is more than 0.45
    assert "outside 0.0 to 0.45: seeds [0]" in capsys.readouterr().out
    demo_seeds.picture(demo_seeds.finished(tmp_path / "thread"), str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
