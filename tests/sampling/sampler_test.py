"""The sampler against independent oracles: full forward passes, float64 NumPy, and brute force on strings."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.config import ModelConfig
from star_jax.distributed import platforms, sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling import engine, scoring, stop_strings
from star_jax.sampling import sampler as sampling
from star_jax.sampling.sampler import Sample
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers import load_directory
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer
from star_jax.weights import placement
from tests.support.models import TINY, numpy_params
from tests.support.sampling import TextSampler

SYMBOLS = SymbolTokenizer(Arithmetic.symbols)
STOP, BUDGET = ("6 +", "3"), 12
GREEDY, WARM = Decoding(), Decoding(temperature=0.8)
COMMON = dict(stop=STOP, max_new_tokens=BUDGET, prefill_tokens=32, longest_body=32)


@pytest.fixture(scope="module")
def lively() -> tuple[decoder.Decoder, decoder.Params]:
    """A model over the 20 symbols (one of them padding) whose texts differ and sometimes stop by themselves."""
    params = numpy_params(TINY, seed=1, scale=0.6)
    params["blocks"]["norm"]["scale"][:] = params["final_norm"]["scale"][:] = 1
    params["head"]["bias"][SYMBOLS.end_ids[0]] += 4
    return families.build(TINY), jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def bodies() -> list[str]:
    """Twenty texts of 1 to 30 symbols."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(SYMBOLS.symbols, n)) for n in [1, 30, *rng.integers(2, 30, 18)]]


@pytest.fixture(scope="module")
def expected(lively, bodies) -> dict[Decoding, list[Sample]]:
    """The samples after the bodies by one full forward pass for each token; seeds are the bodies' indices."""
    return {how: plain_loop(*lively, bodies, [str(i) for i in range(len(bodies))], how) for how in (GREEDY, WARM)}


def plain_loop(model, params, texts, seeds, how) -> list[Sample]:
    """No cache, no slots, no automaton: the oracle. A row's next token comes from a pass over its whole text."""
    forward = jax.jit(functools.partial(decoder.apply, model))
    rows = [SYMBOLS.encode(text) for text in texts]
    begins, used = [len(row) for row in rows], SYMBOLS.vocab_size
    log_probs: list[list[float]] = [[] for _ in rows]
    done: dict[int, Sample] = {}
    for step in range(BUDGET):
        tokens_BT = np.zeros((len(rows), max(begins) + BUDGET), np.int32)
        for i, row in enumerate(rows):
            tokens_BT[i, : len(row)] = row
        logits_BTV = np.asarray(forward(params, tokens_BT), np.float64)[..., :used]
        for i in set(range(len(rows))) - done.keys():
            logits_V = logits_BTV[i, len(rows[i]) - 1]
            noise_V = np.zeros(used)
            if how.temperature:
                key = jax.random.wrap_key_data(sampling.key_data(seeds[i]), impl="threefry2x32")
                noise_V = how.temperature * np.asarray(jax.random.gumbel(jax.random.fold_in(key, step), (20,)))[:used]
            token = int(np.argmax(logits_V + noise_V))
            log_probs[i].append(logits_V[token] - np.log(np.sum(np.exp(logits_V))))
            rows[i].append(token)
            ids = rows[i][begins[i] :]
            text = SYMBOLS.decode(ids)
            stopped = token == SYMBOLS.end_ids[0] or any(stop in text for stop in STOP)
            if stopped or step == BUDGET - 1:
                cut = min((text.find(stop) for stop in STOP if stop in text), default=len(text))
                done[i] = Sample(text[:cut], tuple(ids), tuple(log_probs[i]), not stopped)
    return [done[i] for i in range(len(rows))]


def assert_same(samples, expected):
    """Equal ids, texts and ends; log-probabilities of each token within rounding."""
    assert [s.token_ids for s in samples] == [e.token_ids for e in expected]
    assert [(s.text, s.truncated) for s in samples] == [(e.text, e.truncated) for e in expected]
    for sample, other in zip(samples, expected, strict=True):
        np.testing.assert_allclose(sample.token_log_probs, other.token_log_probs, atol=2e-4)
        assert sample.log_probability == pytest.approx(sum(sample.token_log_probs), abs=1e-4)


def test_greedy_samples_are_those_of_a_plain_loop(lively, bodies, expected):
    """Texts, ends and log-probabilities, for prompts of 1 to 30 tokens."""
    sampler = TextSampler(*lively, SYMBOLS, decoding=GREEDY, slots=6, queue=16, **COMMON)
    assert_same(sampler(bodies), expected[GREEDY])


@pytest.mark.parametrize(
    "slots, queue, tokens",
    [(1, 3, 32), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(3, 7, 8), (8, 20, 500), (32, 64, 150)])],
)
def test_no_text_depends_on_slots_queue_prefill_or_order(lively, bodies, expected, slots, queue, tokens):
    """Sampling at a temperature. Queues of 3 and 7 leave a tail; 32 slots are more than there are problems."""
    options = COMMON | dict(slots=slots, queue=queue, prefill_tokens=tokens)
    sampler = TextSampler(*lively, SYMBOLS, decoding=WARM, **options)
    order = np.random.default_rng(slots).permutation(len(bodies))
    samples = sampler([bodies[i] for i in order], [str(i) for i in order])
    assert_same(samples, [expected[WARM][i] for i in order])
    if slots == 1:  # one problem a call
        alone = [sampler([bodies[i]], [str(i)])[0] for i in range(8)]
        assert_same(alone, expected[WARM][:8])


@pytest.mark.slow
def test_groups_of_rows_sample_what_one_group_samples(lively, bodies, expected, monkeypatch):
    """Large models split their rows into groups on CPUs; refills reach every group."""
    monkeypatch.setattr(platforms, "kv_row_groups", lambda rows, row_bytes: 3)
    options = COMMON | dict(slots=9, queue=20, prefill_tokens=64)
    sampler = TextSampler(*lively, SYMBOLS, decoding=WARM, **options)
    assert_same(sampler(bodies), expected[WARM])


@pytest.fixture(scope="module")
def together_and_alone(lively):
    """Two samplers: one of five slots, and one with a single slot."""
    options = [dict(slots=5, queue=9), dict(slots=1, queue=3)]
    return [TextSampler(*lively, SYMBOLS, decoding=WARM, **option, **COMMON) for option in options]


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2**31)), min_size=1, max_size=24))
@settings(max_examples=25, deadline=None)
def test_slots_for_any_lengths_and_ends(together_and_alone, asked):
    """Each sample is the same alone, whatever lengths are in the queue and wherever texts stop."""
    bodies = [" ".join(np.random.default_rng(seed).choice(SYMBOLS.symbols, length)) for length, seed in asked]
    seeds = [f"{i} {seed}" for i, (_, seed) in enumerate(asked)]
    together, alone = (sampler(bodies, seeds) for sampler in together_and_alone)
    assert_same(together, alone)
    assert len(together) == len(asked) and all(1 <= len(sample.token_ids) <= BUDGET for sample in together)


@pytest.mark.slow
@pytest.mark.parametrize("slots, tokens", [(8, 500), (16, 40), (3, 64)])
def test_few_slots_are_idle_while_requests_wait(lively, bodies, slots, tokens):
    """Before the last request has a slot, fewer than a quarter of them are free, so this many steps are enough."""
    sampler = TextSampler(
        *lively, SYMBOLS, decoding=WARM, slots=slots, queue=80, **COMMON | dict(prefill_tokens=tokens)
    )
    requests = sampler.requests(bodies * 4)
    ((prefix_ids, indices, padded_length),) = sampler.sampler._chunks(requests)
    prefix = sampler.sampler._encode_prefix(sampler.params, prefix_ids)
    out = sampler.sampler._start(sampler.params, prefix, [requests[i] for i in indices], padded_length)
    sampled = sum(len(sample.token_ids) for _, sample in sampler.sampler._read(indices, out))
    assert sampled / slots <= out.steps_G.item() <= sampled / (slots - max(1, slots // 4) + 1) + BUDGET


def test_chunks_are_ready_one_after_the_other_and_hold_every_request_once(lively, bodies, expected, monkeypatch):
    """The next chunk is started before one is yielded: the device works while the caller judges and stores."""
    sampler = TextSampler(*lively, SYMBOLS, decoding=WARM, slots=3, queue=9, **COMMON)
    events, start = [], sampling.Sampler._start
    monkeypatch.setattr(sampling.Sampler, "_start", lambda *args: events.append("started") or start(*args))
    samples: dict[int, Sample] = {}
    for chunk in sampler.sampler.stream(sampler.params, sampler.requests(bodies)):
        events.append(len(chunk))
        assert not samples.keys() & {index for index, _ in chunk}
        samples.update(chunk)
    assert events == ["started", "started", 9, "started", 9, 2]
    assert_same([samples[i] for i in range(len(bodies))], expected[WARM])
    assert sampler([]) == [] and list(sampler.sampler.stream(sampler.params, [])) == []


def test_the_oracle_sees_every_kind_of_end(expected):
    kinds = {(w.truncated, w.token_ids[-1] == SYMBOLS.end_ids[0]) for w in expected[WARM]}
    assert kinds == {(True, False), (False, True), (False, False)}
    assert len({len(w.token_ids) for w in expected[WARM]}) > 4
    assert len({w.token_ids for w in expected[GREEDY]}) > 10


def test_a_shared_prefix_samples_what_the_same_text_in_the_body_samples(lively, bodies, expected, monkeypatch):
    """Texts are split into prefix and body at several points; each prefix of a call is encoded once."""
    sampler = TextSampler(*lively, SYMBOLS, decoding=WARM, slots=4, queue=8, **COMMON)
    lengths, encode = [], sampling.Sampler._encode_prefix

    def counting(self, params, prefix_ids):
        lengths.append(len(prefix_ids))
        return encode(self, params, prefix_ids)

    monkeypatch.setattr(sampling.Sampler, "_encode_prefix", counting)
    prompts, indices = [], []
    for index, body in enumerate(bodies):
        words = body.split(" ")
        for cut in {0, min(5, len(words) - 1), min(20, len(words) - 1)}:
            prompts.append(Prompt(" ".join(words[:cut]), " ".join(words[cut:])))
            indices.append(index)
    assert_same(sampler(prompts, [str(i) for i in indices]), [expected[WARM][i] for i in indices])
    assert set(lengths) >= {0, 5, 20} and len(lengths) == len({p.prefix for p in prompts})


def test_padded_ids_are_never_sampled(lively, bodies):
    """The last of the model's 20 rows belongs to no token: it is neither sampled nor counted in log p."""
    model, params = lively
    tempted = jax.tree.map(lambda x: x, params)
    tempted["head"]["bias"] = params["head"]["bias"].at[19].set(50.0)
    for how, slots, queue in [(GREEDY, 6, 16), (WARM, 3, 7)]:
        sampler = TextSampler(model, params, SYMBOLS, decoding=how, slots=slots, queue=queue, **COMMON)
        assert sampler.with_params(tempted)(bodies) == sampler(bodies)


def test_samples_follow_the_distribution():
    """4,000 samples of two tokens: each token and the pairs of them, by chi-square at p = 0.001."""
    share_V = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    config = ModelConfig(1, 8, 1, 8, 2, vocab_size=20, max_positions=64)
    params = jax.tree.map(np.zeros_like, numpy_params(config))
    params["head"]["bias"][:] = -40
    params["head"]["bias"][:5] = np.log(share_V)
    sampler = TextSampler(families.build(config), params, SYMBOLS, max_new_tokens=2, decoding=Decoding(1.0), queue=4096)
    samples = sampler(["7"] * 4000, [f"seed {i}" for i in range(4000)])
    first, second = np.array([sample.token_ids for sample in samples]).T
    for tokens, p, bound in [(first, share_V, 18.5), (second, share_V, 18.5),
                             (5 * first + second, np.outer(share_V, share_V).ravel(), 51.2)]:  # fmt: skip
        counts = np.bincount(tokens, minlength=len(p))
        assert np.sum((counts - 4000 * p) ** 2 / (4000 * p)) < bound


def test_truncation_keeps_what_numpy_keeps_and_samples_in_proportion():
    for settings_ in [(1, 3, 1), (0.7, 0, 0.8), (1.5, 6, 0.5), (1, 1, 1), (2, 0, 1e-6)]:
        check_truncation(*settings_)


def check_truncation(temperature, top_k, top_p):
    """The tokens that may be sampled, and how often, against float64 NumPy."""
    logits_V = 1.5 * np.random.default_rng(2).standard_normal(9)
    scaled_V = logits_V / temperature
    order = np.argsort(-scaled_V)[: top_k or None]
    p = np.exp(scaled_V[order]) / np.sum(np.exp(scaled_V[order]))
    kept = 1 + np.argmax(np.append(np.cumsum(p), 2.0)[: len(p)] >= top_p) if top_p < 1 else len(p)
    p = p[:kept] / np.sum(p[:kept])
    keys_B = jax.random.split(jax.random.key(5), 4000)
    rows_BV = jnp.broadcast_to(jnp.append(jnp.asarray(logits_V, jnp.float32), -jnp.inf), (4000, 10))
    token_B = np.asarray(Decoding(temperature, top_k, top_p).sample(rows_BV, keys_B))
    assert set(token_B.tolist()) == set(order[:kept].tolist())
    counts = np.bincount(token_B, minlength=9)[order[:kept]]
    assert np.sum((counts - 4000 * p) ** 2 / (4000 * p)) < 27.9  # chi-square, 9 degrees, p = 0.001


def test_of_equally_likely_tokens_all_stay():
    logits_BV = jnp.array([[1.0, 3.0, 3.0, -jnp.inf, -2.0], [-1.0, -1.0, -1.0, -5.0, -jnp.inf]])
    for how in (Decoding(1.0, top_k=1), Decoding(1.0, top_p=0.1)):
        kept_BV = np.isfinite(np.asarray(how._truncate(logits_BV)))
        assert kept_BV.tolist() == [[False, True, True, False, False], [True, True, True, False, False]]


class Pieces(Tokenizer):
    """A tokenizer with any pieces; a text for it to encode is a list of ids. The last id is end-of-text."""

    def __init__(self, pieces):
        self.pieces, self.vocab_size, self.end_ids = [*pieces, b""], len(pieces) + 1, (len(pieces),)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode_bytes(self, ids):
        return b"".join(self.pieces[i] for i in ids)

    def stop_bytes(self, stop):
        return stop.encode()

    def spec(self):
        raise NotImplementedError


def chain(follower: dict[int, int], vocab_size: int) -> tuple[decoder.Decoder, decoder.Params]:
    """A model that follows token t with `follower[t]`, whatever came before: embedding -> norm -> head, no blocks."""
    wide = max(8, len(follower) + len(follower) % 2)
    config = ModelConfig(1, wide, 1, 8, 2, vocab_size, max_positions=64)
    params = jax.tree.map(np.zeros_like, numpy_params(config))
    params["final_norm"]["scale"][:] = 1
    for row, (token, after) in enumerate(follower.items()):
        params["embedding"]["embedding"][token, row] = 1
        params["head"]["kernel"][row, after] = 20
    return families.build(config), params


def test_every_end_id_stops_and_other_special_tokens_are_never_sampled():
    """Tokens a, b, special, c, end, end. The model follows a and b with an end each, and c with the special token."""
    tokenizer = Pieces([b"a", b"b", b"", b"c", b""])
    tokenizer.end_ids = (5, 4)
    model, params = chain({0: 4, 1: 5, 3: 2}, 8)
    sampler = TextSampler(model, params, tokenizer, max_new_tokens=4, slots=4, queue=4)
    assert sampler.sampler.engine.never_sampled == tokenizer.never_sampled == (2,)
    after_a, after_b, after_c = sampler(["0", "1", "3"])
    assert [(s.token_ids, s.text, s.truncated) for s in (after_a, after_b)] == [((4,), "", False), ((5,), "", False)]
    assert (after_c.token_ids, after_c.text, after_c.truncated) == ((0, 4), "a", False)  # of equal ones the first
    logits_V = np.asarray(decoder.apply(model, jax.tree.map(jnp.asarray, params), jnp.array([[3]])), np.float64)[0, 0]
    assert np.argmax(logits_V) == 2
    used_V = logits_V[[0, 1, 3, 4, 5]]
    np.testing.assert_allclose(after_c.token_log_probs[0], used_V[0] - np.log(np.sum(np.exp(used_V))), rtol=1e-5)
    mesh = sampler.sampler.mesh
    placed = jax.tree.map(sharding.put, params, placement.param_shardings(model, mesh))
    pairs = [([1], after_b.token_ids), ([3], after_c.token_ids)]
    log_probs = scoring.score(model, placed, pairs, mesh, vocab_used=6, never_sampled=(2,), row_tokens=8, batch_rows=1)
    for scored, sample in zip(log_probs, (after_b, after_c), strict=True):
        np.testing.assert_allclose(scored, sample.token_log_probs, rtol=1e-5, atol=1e-6)


def test_the_automaton_of_a_quarter_of_a_million_tokens_takes_a_second_at_most():
    """Against the pieces' bytes, one by one, on a sample of them. 0.2 s of CPU time here."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(1 + rng.poisson(6, 2**18), 48)
    content = rng.choice(np.frombuffer(b"ab\n:Q xyz", np.uint8), sizes.sum()).tobytes()
    ends = np.cumsum(sizes).tolist()
    tokenizer = Pieces([content[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)])
    stops, started = ["\n\n", "\nQ:"], time.process_time()
    table_SV = stop_strings.automaton(tokenizer, stops)
    assert time.process_time() - started < 1.0
    assert table_SV.shape == (4, 2**18 + 1) and table_SV.dtype == np.int32
    for token in rng.integers(0, 2**18, 300).tolist():
        check_automaton(table_SV, tokenizer, stops, [token, int(rng.integers(2**18))])


# Automata of one size, so that they share a compiled program.
STOP_SETS = [("aab", "ab", "ba"), ("\n\n", "ab\n"), ("b\na", "aa", "\n"), ("é", "aé")]


def test_nothing_after_a_stop_and_nothing_lost_before_it():
    for stops in STOP_SETS:
        check_stops(stops)


def check_stops(stops):
    """From each of 63 starts the model must emit the pieces that follow, of 1 to 3 bytes, till a stop or the budget."""
    rng = np.random.default_rng(1)
    parts = [stop.encode()[i : i + 1] for stop in stops for i in range(len(stop.encode()))] + [b"c"] * 20
    tokenizer = Pieces([b"".join(rng.choice(parts, size)) for size in rng.integers(1, 4, 63)])
    model, params = chain({i: min(i + 1, 63) for i in range(64)}, 64)
    sampler = TextSampler(model, params, tokenizer, stop=stops, max_new_tokens=9, slots=16, queue=63)
    samples = sampler([str(start) for start in range(63)])
    for start, sample in enumerate(samples):
        ids, emitted = [], b""
        while len(ids) < 9 and tokenizer.end_ids[0] not in ids and not any(s.encode() in emitted for s in stops):
            ids.append(start + 1 + len(ids))
            emitted = b"".join(tokenizer.pieces[i] for i in ids)
        cut = min((emitted.find(s.encode()) for s in stops if s.encode() in emitted), default=len(emitted))
        stopped = cut < len(emitted) or ids[-1] == tokenizer.end_ids[0]
        assert sample.token_ids == tuple(ids)
        assert (sample.text, sample.truncated) == (emitted[:cut].decode(errors="replace"), not stopped)
        assert sample.valid_utf8 == is_utf8(emitted[:cut])
    ends = {(len(sample.token_ids) == 9, sample.truncated) for sample in samples}
    assert (True, False) in ends, "some stop should come with the last token of the budget"
    assert (True, True) in ends, "some budget should end without a stop"


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# Whole characters, U+FFFD itself, halves of characters and stops.
PIECES = [b"a", "é".encode(), "\ufffd".encode(), b"\xef\xbf", b"\xbd", b"\xc3", b"\xa9", b"\xff", b"\n\n", b"\nQ"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_a_written_replacement_character_is_text_and_a_broken_sequence_is_none(pieces):
    data, stops = b"".join(pieces), ("\n\n", "\nQ", "\ufffda")
    cut = min((at for stop in stops if (at := data.find(stop.encode())) >= 0), default=len(data))
    text, valid_utf8 = stop_strings.text_before(data, stops)
    assert (text, valid_utf8) == (data[:cut].decode(errors="replace"), is_utf8(data[:cut]))


def test_stops_that_no_tokens_write_are_refused():
    wrong = []
    for pieces, stop, reachable in [
        ([b"a", b"b"], "ab", True),
        ([b"a", b"b"], "a\n", False),
        ([b"x\nQ", b":y"], "\nQ:", True),  # across a border, in the middle of tokens
        ([b"x\nQ", b"y:"], "\nQ:", False),
        ([b"\n", b"\nQ:\n"], "\nQ:", True),
        ([b"\nQ:"], "\n\n", False),
        ([b"\xc3", b"x\xa9"], "é", False),
        ([b"a\xc3", b"\xa9x"], "é", True),
    ]:
        try:
            stop_strings.automaton(Pieces(pieces), [stop])
            refused = False
        except InputError as error:
            refused = "no tokens for the stop string" in str(error) and repr(stop) in str(error)
        if refused == reachable:
            wrong.append((pieces, stop))
    assert not wrong


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3), st.text("ab\né", max_size=24))
def test_the_automaton_finds_a_stop_at_its_last_byte(stops, text):
    tokenizer = ByteTokenizer()
    check_automaton(stop_strings.automaton(tokenizer, stops), tokenizer, stops, tokenizer.encode(text))


def check_automaton(table_SV, tokenizer, stops, ids):
    """After each token the automaton has seen a stop exactly if the bytes so far hold one."""
    state, emitted = 0, b""
    for token in ids:
        state = table_SV[state, token]
        emitted += tokenizer.pieces[token]
        assert (state == len(table_SV) - 1) == any(s.encode() in emitted for s in stops), (stops, emitted)
    assert (table_SV[:, tokenizer.end_ids[0]] == len(table_SV) - 1).all()


def test_stops_across_the_borders_of_gpt2_tokens(shared_dir):
    """Every split of a text into tokens that exist finds the same stop; the sampler cuts inside a token."""
    tokenizer = load_directory(shared_dir / "data" / "gpt2")
    stops = ["ne.\nQ", "n: a", "\n\n"]
    table_SV = stop_strings.automaton(tokenizer, stops)
    id_of = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    rng = np.random.default_rng(0)
    for text in [b"So it is nine.\nQuestion: and", b"A man: and\n\n\nQ", b"nine.\n Question : a \n n:: an"] * 20:
        ids = []
        while text:
            ids.append(id_of[text[: rng.choice([n for n in range(1, 9) if text[:n] in id_of])]])
            text = text[len(tokenizer.pieces[ids[-1]]) :]
        check_automaton(table_SV, tokenizer, stops, ids)

    start, *ids = tokenizer.encode(" Yes, so it is nine.\nQuestion: and")
    follower = dict(itertools.pairwise([start, *ids]))
    sampler = TextSampler(*chain(follower, 50400), tokenizer, stop=stops, max_new_tokens=24, slots=2, queue=2)
    (sample,) = sampler([" Yes"])
    assert sample.text == ", so it is ni" and not sample.truncated
    assert sample.token_ids == tuple(ids[: ids.index(id_of[b"Question"]) + 1])


def test_nothing_is_compiled_again_for_other_weights_prompts_or_counts(lively, bodies):
    model, params = lively
    options = COMMON | dict(decoding=WARM, slots=4, queue=8)
    sampler = TextSampler(model, params, SYMBOLS, **options)
    shots = ["1 + 1 , 2", "3 + 4 \n , 7"]
    sampler([Prompt(shot, body) for shot in ("", shots[0]) for body in bodies])
    before = engine.sample_queues._cache_size(), sampling._encode_prefix._cache_size()
    other = sampler.with_params(jax.tree.map(lambda leaf: 0.5 * leaf, params))
    again = TextSampler(families.build(TINY), params, SYMBOLS, **options)
    fewer = [Prompt(shots[1], body + " 5") for body in bodies[3:]]
    changed = other(fewer)
    again(["4 4"])
    assert (engine.sample_queues._cache_size(), sampling._encode_prefix._cache_size()) == before
    assert changed != sampler(fewer), "other weights, other texts"


def test_bad_input_is_reported_before_anything_is_sampled(lively, monkeypatch):
    model, params = lively
    sampler = TextSampler(model, params, SYMBOLS, decoding=WARM, slots=3, queue=7, **COMMON)
    started = []
    with monkeypatch.context() as patch:
        patch.setattr(sampling.Sampler, "_start", lambda *args: started.append(args))
        for bad in [Prompt("", "1 " * 501), Prompt("1 " * 500, "2"), Prompt("1 + 1", "")]:
            with pytest.raises(InputError):
                sampler([Prompt("", "2"), bad])
        for prefix_ids, body_ids in (((2,), (3, 20)), ((2, 99), (3,)), ((), (-1, 3))):
            request = sampling.Request(EncodedPrompt(Prompt("", ""), prefix_ids, body_ids), "seed")
            with pytest.raises(InputError, match=r"the token id (20|99|-1) and the model ids 0 to 19"):
                sampler.sampler.sample(sampler.params, [request])
    assert not started
    assert len(sampler(["2"])) == 1
    for options in [dict(slots=0), dict(prefill_tokens=0), dict(queue=0), dict(max_new_tokens=0), dict(stop=("",))]:
        with pytest.raises(InputError):
            TextSampler(model, params, SYMBOLS, **options)
    with pytest.raises(InputError, match="257 ids"):
        TextSampler(model, params, ByteTokenizer())


@pytest.mark.parametrize("how", [GREEDY, WARM])
def test_a_model_whose_logits_overflow_is_refused(lively, how):
    """Its weights are finite. Every token of every sample would be the first one whose logit is NaN."""
    model, params = lively
    overflowing = {**params, "head": {**params["head"], "kernel": params["head"]["kernel"] * 1e38}}
    assert np.isfinite(overflowing["head"]["kernel"]).all()
    sampler = TextSampler(model, overflowing, SYMBOLS, decoding=how, slots=2, queue=4, **COMMON)
    with pytest.raises(InputError, match="logits are not finite numbers, so its samples mean nothing"):
        sampler(["3 + 4", "4"])
