"""A run stores what it says that it will store; what is too small for it is named before the first stage."""

import logging
import os
import shutil
import types
from pathlib import Path

import jax
import pytest

from star_jax.algorithms import budget, estimates, setup, star
from star_jax.preflight import lengths
from tests.support.runs import small_config
from tests.support.tables import every_row


def bytes_of(folder: Path, *patterns: str) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def test_the_estimate_covers_what_a_run_stores_and_not_much_more(base, finished, tmp_path):
    run = setup.open_run(small_config(base__path=str(base)), tmp_path)
    try:
        needs = estimates.disk_needs(run, [0, 1, 2], [0, 1, 2])
    finally:
        run.close()
    weights = bytes_of(finished, "base/weights/**/*", "iter_*/params/weights/**/*")
    samples = bytes_of(finished, "iter_*/*.jsonl", "iter_*/*.safetensors")
    assert (
        needs.models == 3 and 0.5 * weights < needs.weights < 1.1 * weights
    )  # of 70 KB each, Orbax's files are a part
    assert samples < needs.samples < 20 * samples, "most completions end long before their budget"
    assert needs.checkpoints == 0


@every_row(
    ("iterations", "keep_weights", "missing", "models"),
    [
        (3, 0, [0, 1, 2, 3], 4),
        (3, 0, [3], 1),
        (40, 1, list(range(41)), 4),  # the base, the best one, the one kept, and the one that is being made
        (40, 1, [*range(1, 19), *range(21, 41)], 1),
        (1, 5, [0, 1], 2),
        (3, 1, [], 0),
    ],
)
def test_models_that_are_deleted_on_the_way_are_not_counted(iterations, keep_weights, missing, models):
    assert estimates.models_on_disk(iterations, keep_weights, missing) == models


def test_a_disk_that_is_too_small_is_a_warning_before_the_base_is_made(base, tmp_path, monkeypatch, caplog):
    def stop(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "make_base", stop)
    config = small_config(base__path=str(base), star__iterations=40, train__checkpoint_every=2)
    for free, level in ((10**12, logging.INFO), (10**5, logging.WARNING)):
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
        with caplog.at_level(logging.INFO, "star_jax"), pytest.raises(KeyboardInterrupt):
            star.run(config, tmp_path)
        (record,) = [record for record in caplog.records if record.getMessage().startswith("disk: ")]
        message = record.getMessage()
        assert record.levelno == level and "the weights of 41 models, " in message and "for checkpoints of" in message
        advice = "--config.star.keep_weights=1, which stores 4 of the models"
        assert (advice in message) == (level == logging.WARNING)


def test_memory_is_counted_as_preflight_counts_it(base, tmp_path):
    config = small_config(base__path=str(base))
    run = setup.open_run(config, tmp_path)
    try:
        needs = estimates.memory_needs(run, trains=True)
        assert set(estimates.memory_needs(run, trains=False)) == {"sampling takes"}
        spec, tensor = run.model.spec, run.sampling_mesh.shape["tensor"]
        size, _ = lengths.of_run(run.config, base)
        sampling = sum(budget.sampling_bytes(run.config, spec, tensor, size))
        training = sum(budget.train_bytes(run.config, spec, dict(run.mesh.shape)))
    finally:
        run.close()
    assert needs == {"sampling takes": sampling, "training": training}


def test_a_device_that_is_too_small_is_a_warning_before_the_base_is_made(base, tmp_path, monkeypatch, caplog):
    def stop(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "make_base", stop)
    for available, level in ((1e12, logging.INFO), (1e5, logging.WARNING)):
        caplog.clear()
        monkeypatch.setattr(estimates, "device_memory", lambda available=available: available)
        with caplog.at_level(logging.INFO, "star_jax"), pytest.raises(KeyboardInterrupt):
            star.run(small_config(base__path=str(base)), tmp_path)
        (record,) = [record for record in caplog.records if record.getMessage().startswith("memory, ")]
        assert record.levelno == level and f"which has {estimates.size(available)}" in record.getMessage()
        assert ("star_jax.preflight names" in record.getMessage()) == (level == logging.WARNING)


def test_cpu_devices_share_the_machines_memory():
    assert 8 * estimates.device_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(jax.local_devices()) == 8


@every_row(
    ("number", "text"),
    [(12, "12 bytes"), (1234567, "1.23 MB"), (999_600, "1 MB"), (12.1e9, "12.1 GB"), (5e15, "5,000.0 TB")],
)
def test_sizes_are_short(number, text):
    assert estimates.size(number) == text
