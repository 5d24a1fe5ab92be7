"""Hidden Chow-Liu trees: learning on both kinds of array, the walk, and codes as long as the likelihood says."""

import itertools
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.core.stage import Symbols
from laconic.entropy.circuits import Circuit, Tree, codes, values, walk
from laconic.entropy.circuits_em import Learner, Parameters, chow_liu, mutual_information


def _rows(n, seed=0, d=12, alphabet=6):
    """Markov chains over a shuffled order of variables: what neighbours in the chain are, no histogram can tell."""
    rng = np.random.default_rng(seed)
    x = np.empty((n, d), np.uint8)
    x[:, 0] = rng.integers(0, alphabet, n)
    for i in range(1, d):
        x[:, i] = np.where(rng.random(n) < 0.85, (x[:, i - 1] + 1) % alphabet, rng.integers(0, alphabet, n))
    return x[:, np.random.default_rng(99).permutation(d)]


@lru_cache
def _fitted(epochs=12):
    return Circuit(n_states=6, epochs=epochs, batch=64).fit(Symbols(_rows(600), 6))


def test_tree_joins_what_depends_on_each_other():
    d = 12
    tree = chow_liu(_rows(2000), 6)
    place = np.argsort(np.random.default_rng(99).permutation(d))  # column of each link of the chain
    links = {frozenset((int(place[i]), int(place[i + 1]))) for i in range(d - 1)}
    edges = {frozenset((int(tree.order[v]), int(tree.order[tree.parent[v]]))) for v in range(1, d)}
    assert edges == links
    assert tree.depths().max() <= (d + 1) // 2  # rooted in the middle
    assert (np.diff(tree.depths()) >= 0).all()


def test_information_of_large_alphabets_is_measured_on_intervals():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 200, 4000)
    x = np.stack([a, np.clip(a + rng.integers(-9, 9, 4000), 0, 255), rng.integers(0, 256, 4000)], 1).astype(np.uint8)
    information = mutual_information(x, 256)
    assert information[0, 1] > 1.0 > 10 * information[0, 2] and information[0, 1] == information[1, 0]


def _brute(p, tree, x):
    """Log-likelihoods by summing over all hidden states."""
    d, m = x.shape[1], p.edge.shape[1]
    total = np.zeros(len(x))
    for z in itertools.product(range(m), repeat=d):
        term = np.ones(len(x))
        for v in range(d):
            term *= p.edge[v, z[tree.parent[v]] if v else 0, z[v]] * p.emission[v, x[:, v], z[v]]
        total += term
    return np.log(total)


def _small(device=None):
    tree = Tree(np.array([2, 0, 3, 1]), np.array([0, 0, 0, 1]))
    learner = Learner(tree, 3, 2, device=device, precision="float64")
    x = np.random.default_rng(0).integers(0, 3, (30, 4)).astype(np.uint8)
    return learner, learner.start(x, np.random.default_rng(1)), x


def test_likelihood_is_the_sum_over_hidden_states():
    learner, p, x = _small()
    found = learner.upward(p, x.T.astype(np.int64), learner.plan())[0]
    np.testing.assert_allclose(found, _brute(p, learner.tree, x), rtol=1e-9)


def test_expected_counts_are_gradients():
    """n(θ) = θ ∂ log p / ∂θ, by differences."""
    learner, p, x = _small()
    _, n_edge, n_emission = learner.expected(p, x.T.astype(np.int64), learner.plan())
    for place in ((1, 0, 1), (3, 1, 0)):
        edge = p.edge.copy()
        edge[place] *= 1 + 1e-6
        rise = (_brute(Parameters(edge, p.emission), learner.tree, x) - _brute(p, learner.tree, x)).sum() / 1e-6
        assert rise == pytest.approx(n_edge[place], rel=1e-4)
    emission = p.emission.copy()
    emission[2, 1, 0] *= 1 + 1e-6
    rise = (_brute(Parameters(p.edge, emission), learner.tree, x) - _brute(p, learner.tree, x)).sum() / 1e-6
    assert rise == pytest.approx(n_emission[2, 1, 0], rel=1e-4)


def test_torch_learns_the_same():
    x = _rows(200)
    tree = chow_liu(x, 6)
    numpy, torch = (Learner(tree, 6, 4, device=d, precision="float64") for d in (None, "cpu"))
    a, b = (learner.fit(x, epochs=3, batch=64) for learner in (numpy, torch))
    np.testing.assert_allclose(a.edge, torch.numpy(b.edge), rtol=1e-9)
    np.testing.assert_allclose(a.emission, torch.numpy(b.emission), rtol=1e-9)
    c = Circuit(n_states=4, epochs=3, batch=64)
    assert (c.fit(Symbols(x, 6)).emission == c.fit_on(Symbols(x, 6), device="cpu").emission).all()


def test_likelihood_rises_with_every_epoch_and_progress_ends():
    x, seen, told = _rows(400), [], []
    learner = Learner(chow_liu(x, 6), 6, 6, precision="float64")
    learner.fit(x, epochs=6, batch=100, watch=lambda _, p: seen.append(learner.estimated_bits(p, x)),
                progress=lambda done, total, what: told.append((done, total)))  # fmt: skip
    assert seen[0] > seen[2] > seen[5]
    assert told[-1] == (24, 24)


def test_names_lend_no_weight_to_their_neighbours():
    x = _rows(300, alphabet=6)
    spread = (x * 40).astype(np.uint8)  # six symbols far apart, which is no matter: places among those that occur count
    tree = chow_liu(x, 6)
    for ordered in (True, False):
        a = Learner(tree, 6, 4, precision="float64", ordered=ordered)
        b = Learner(tree, 256, 4, precision="float64", ordered=ordered)
        near, far = a.nearness(x), b.nearness(spread)
        assert (near == far[:201:40, :201:40]).all() and (near == 1).all() == (not ordered)


def test_many_children_do_not_underflow():
    d = 400
    x = np.random.default_rng(0).integers(0, 2, (50, d)).astype(np.uint8)
    star = Tree(np.arange(d), np.zeros(d, np.int64))
    learner = Learner(star, 2, 8)
    p = learner.fit(x, epochs=2, batch=50)
    assert np.isfinite(p.edge).all() and np.isfinite(p.emission).all()
    assert 0.9 < learner.estimated_bits(p, x) < 1.1


@pytest.mark.parametrize("shape", ["chain", "star", "random"])
def test_walk_sends_two_messages_an_edge_at_most(shape):
    d, rng = 300, np.random.default_rng(0)
    parent = {
        "chain": np.maximum(np.arange(d) - 1, 0),
        "star": np.zeros(d, np.int64),
        "random": np.array([0, *(rng.integers(0, v) for v in range(1, d))]),
    }[shape]
    steps = walk(Tree(np.arange(d), parent))
    assert sorted(s.node for s in steps if s.down) == list(range(d))
    assert len(steps) <= 2 * d and steps[-1].down
    path: list[int] = []
    for v, down in steps:
        if down:
            assert not path or parent[v] == path[-1]
            path.append(v)
        else:
            assert path.pop() == v


def test_walk_leaves_the_longest_way_back_to_the_end():
    d = 50
    parent = np.array([0, 0, 0, *range(2, d - 1)])  # a leaf and a chain below the root
    assert len(walk(Tree(np.arange(d), parent))) == d + 1


def test_every_variable_is_coded_given_all_before():
    """Of rows drawn from a circuit of many branches, sharp enough that what is forgotten costs much."""
    d, m, n_symbols, n, rng = 40, 4, 7, 300, np.random.default_rng(5)
    parent = np.array([0, *np.sort([rng.integers(0, max(v // 3, 1)) for v in range(1, d)])])
    p = Parameters(rng.dirichlet([0.2] * m, (d, m)), rng.dirichlet([0.1] * n_symbols, (d, m)).swapaxes(1, 2))
    p.edge[0] = 1 / m
    edge, emission = codes(p.edge), codes(p.emission)
    p = Parameters(*(2.0 ** (-a.astype(np.float64) / 8) for a in (edge, emission)))
    p = Parameters(p.edge / p.edge.sum(2, keepdims=True), p.emission / p.emission.sum(1, keepdims=True))
    z, x = np.zeros((d, n), np.int64), np.zeros((n, d), np.uint8)
    order = rng.permutation(d)
    for v in range(d):
        above = z[parent[v]]
        z[v] = [rng.choice(m, p=q) for q in p.edge[v, above]]
        x[:, order[v]] = [rng.choice(n_symbols, p=q) for q in p.emission[v].T[z[v]]]
    tree = Tree(order, parent)
    y, _ = Circuit(d, m).holding(tree, edge, emission).encode(Symbols(x, n_symbols))
    said = Learner(tree, n_symbols, m, precision="float64").estimated_bits(p, x)
    assert 8 * len(y) / x.size == pytest.approx(said, abs=0.003)


def test_codes_stand_for_probabilities():
    p = 2.0 ** -np.linspace(0, 31, 500)
    np.testing.assert_allclose(values()[codes(p)] / 2**40, p, rtol=0.045)
    assert values()[0] == 1 << 40 and values()[8] == 1 << 39


@pytest.mark.parametrize("n", [1, 11, 12, 13, 600 * 12, 600 * 12 - 5])
def test_there_and_back(n):
    c, x = _fitted(), _rows(600, seed=1).reshape(-1)[:n]
    y, side = c.encode(Symbols(x, 6))
    back = c.decode(y, side)
    assert (back.index == x).all() and back.alphabet == 6 and back.index.dtype == x.dtype


def test_code_is_as_long_as_the_likelihood_says_and_shorter_than_a_histogram():
    c, x = _fitted(), _rows(600, seed=1)
    y, _ = c.encode(Symbols(x, 6))
    p = Parameters(*(2.0 ** (-a.astype(np.float64) / 8) for a in (c.edge, c.emission)))
    p = Parameters(p.edge / p.edge.sum(2, keepdims=True), p.emission / p.emission.sum(1, keepdims=True))
    said = Learner(Tree(c.order.astype(int), c.parent.astype(int)), 6, 6).estimated_bits(p, x)
    assert abs(8 * len(y) / x.size - said) < 0.005
    share = np.bincount(x.reshape(-1)) / x.size
    assert 8 * len(y) / x.size < 0.75 * -(share @ np.log2(share))


def test_blocks_hold_a_bounded_memory(monkeypatch):
    from laconic.entropy import circuits

    c, x = _fitted(epochs=2), _rows(600, seed=1)
    whole, side = c.encode(Symbols(x, 6))
    monkeypatch.setattr(circuits, "_HELD", 6 * 100)
    many, _ = c.encode(Symbols(x, 6))
    assert len(whole) < len(many) < len(whole) + 600
    assert (c.decode(many, side).index == x).all()
    with pytest.raises(CorruptStream):
        c.decode(whole, side)


def test_wide_alphabets():
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 500, (60, 1)) + rng.integers(0, 20, (60, 5))).astype(np.uint16)
    c = Circuit(n_states=3, epochs=2, batch=30).fit(Symbols(x, 600))
    y, side = c.encode(Symbols(x, 600))
    assert (c.decode(y, side).index == x).all()


def test_what_cannot_be_is_refused():
    x = _rows(20)
    with pytest.raises(BadConfig):
        Circuit(n_states=1)
    with pytest.raises(BadConfig):
        Circuit(n_variables=1 << 15)
    with pytest.raises(BadInput):
        Circuit(n_variables=2000).fit(Symbols(x, 6))
    with pytest.raises(NotFitted):
        Circuit().encode(Symbols(x, 6))
    c = Circuit(n_states=2, epochs=1).fit(Symbols(x, 6))
    with pytest.raises(BadInput):
        c.encode(Symbols(x, 7))
    y, side = c.encode(Symbols(x, 6))
    for name, value in (("parent", c.parent[::-1]), ("order", c.order * 0), ("edge", c.edge[1:]),
                        ("emission", c.emission[:, :5])):  # fmt: skip
        with pytest.raises(CorruptStream):
            c.replace(**{name: value}).decode(y, side)
    for bad in (y[:-1], y + b"\0", b"", bytes([y[0] ^ 1]) + y[1:], y[:4] + bytes([y[4] ^ 255]) + y[5:]):
        with pytest.raises(CorruptStream):
            assert not (c.decode(bad, side).index == x).all()
            raise CorruptStream("came back as something else, which only a checksum can tell")


def test_nothing_here_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from laconic.core.stage import Symbols\n"
        "from laconic.entropy.circuits import Circuit\n"
        "x = np.random.default_rng(0).integers(0, 3, (20, 4)).astype(np.uint8)\n"
        "c = Circuit(n_states=2, epochs=1).fit(Symbols(x, 3))\n"
        "assert (c.decode(*c.encode(Symbols(x, 3))).index == x).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
