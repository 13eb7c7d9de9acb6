"""star_jax.preflight.hlo: the parsed collectives are those that the program was written with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.preflight import hlo


def test_known_trip_counts_multiply_and_unknown_ones_add_a_depth():
    """Ten iterations with one all-reduce of [4, 16] float32 each, then a loop of unknown length with an all-gather."""
    mesh = sharding.make_mesh(MeshConfig(data=1, tensor=8))
    sharded, replicated = NamedSharding(mesh, PartitionSpec(None, "tensor")), sharding.replicated(mesh)

    @jax.jit
    def program(x, w, limit):
        def layer(x, _):
            x = jax.lax.with_sharding_constraint(x, sharded)
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), replicated), None

        def iterate(carry):
            y = jax.lax.with_sharding_constraint(carry[1], sharded)
            return carry[0] + 1, jax.lax.with_sharding_constraint(jnp.sin(y), replicated)

        x, _ = jax.lax.scan(layer, x, length=10)
        return jax.lax.while_loop(lambda carry: carry[0] < limit, iterate, (0, x))

    x = jax.device_put(np.ones((4, 16), np.float32), replicated)
    w = jax.device_put(np.ones((16, 16), np.float32), NamedSharding(mesh, PartitionSpec("tensor")))
    collectives = hlo.collectives(program.lower(x, w, jnp.asarray(3)).compile().as_text())
    assert hlo.totals(collectives[0]) == {"all-reduce": (10, 10 * 4 * 16 * 4)}
    assert hlo.totals(collectives[1]) == {"all-gather": (1, 4 * 16 * 4)}


def test_of_an_asynchronous_start_only_the_result_counts():
    lines = (
        "ENTRY %main (p: bf16[8,4]) -> bf16[64,4] {",
        "  %s = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %p), dimensions={0}",
        "  %r = (f32[2]{0}, f32[]) all-reduce(%a, %b), to_apply=%add",
        "  ROOT %d = bf16[64,4]{1,0} all-gather-done(%s)",
        "}",
    )
    collectives = hlo.collectives("\n".join(lines))
    assert hlo.totals(collectives[0]) == {"all-gather": (1, 512), "all-reduce": (1, 12)}
