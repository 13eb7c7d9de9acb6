"""star_jax.preflight.hlo: what is read off a program is what was put into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.preflight import hlo


@pytest.fixture(scope="module")
def text():
    """Ten turns with one all-reduce of [4, 16] float32 each, then a loop of unknown length with an all-gather."""
    mesh = sharding.make_mesh(MeshConfig(data=1, tensor=8))
    along, whole = NamedSharding(mesh, PartitionSpec(None, "tensor")), NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def program(x, w, limit):
        def layer(x, _):
            x = jax.lax.with_sharding_constraint(x, along)
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), whole), None

        def turn(carry):
            y = jax.lax.with_sharding_constraint(carry[1], along)
            return carry[0] + 1, jax.lax.with_sharding_constraint(jnp.sin(y), whole)

        x, _ = jax.lax.scan(layer, x, length=10)
        return jax.lax.while_loop(lambda carry: carry[0] < limit, turn, (0, x))

    x, w = np.ones((4, 16), np.float32), np.ones((16, 16), np.float32)
    rows = NamedSharding(mesh, PartitionSpec("tensor"))
    return program.lower(jax.device_put(x, whole), jax.device_put(w, rows), jnp.asarray(3)).compile().as_text()


def test_known_loops_are_counted_out_and_unknown_ones_add_a_depth(text):
    found = hlo.collectives(text)
    assert hlo.summary(found[0]) == {"all-reduce": (10, 10 * 4 * 16 * 4)}
    assert hlo.summary(found[1]) == {"all-gather": (1, 4 * 16 * 4)}


def test_a_start_that_gives_operand_and_result_counts_the_result():
    lines = (
        "ENTRY %main (p: bf16[8,4]) -> bf16[64,4] {",
        "  %s = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %p), dimensions={0}",
        "  %r = (f32[2]{0}, f32[]) all-reduce(%a, %b), to_apply=%add",
        "  ROOT %d = bf16[64,4]{1,0} all-gather-done(%s)",
        "}",
    )
    found = hlo.collectives("\n".join(lines))
    assert hlo.summary(found[0]) == {"all-gather": (1, 512), "all-reduce": (1, 12)}
