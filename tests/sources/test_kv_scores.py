from __future__ import annotations

import torch

from laconic.sources.kv.scores import EVERY, LATEST, noted, received


def test_probes_of_a_prompt_and_then_the_latest() -> None:
    q = torch.arange(200.0).reshape(1, 1, 200, 1).expand(1, 2, 200, 4)
    probes = noted(None, q, 200)
    assert probes.at.tolist() == [*range(0, 192, EVERY), *range(192, 200)]
    assert torch.equal(probes.queries[0, 0, :, 0], probes.at.float())
    for n in range(1, 4):
        probes = noted(probes, torch.full((1, 2, 1, 4), 199.0 + n), 200 + n)
    assert probes.at.tolist() == list(range(195, 203)) and len(probes.at) == LATEST
    assert torch.equal(probes.queries[0, 1, :, 0], probes.at.float())


def test_accumulated_attention_favours_early_tokens_normalized_does_not() -> None:
    """Queries that look at all tokens alike: the sum falls along the text, the mean over those who see a token less so."""
    n = 64
    probes = noted(None, torch.zeros(1, 2, n, 4), n)
    probes = type(probes)(torch.zeros(1, 2, n, 4), torch.arange(n))
    keys = [(0, torch.randn(1, 1, 40, 4)), (40, torch.randn(1, 1, 24, 4))]
    total, mean = (received(probes, keys, 0, n, 0.5, s)[0] for s in ("accumulated", "normalized"))
    want = torch.stack([(1 / torch.arange(i + 1, n + 1).float()).sum() for i in range(n)])
    assert torch.allclose(total, 2 * want, rtol=1e-4)
    assert torch.allclose(mean, 2 * want / torch.arange(n, 0, -1), rtol=1e-4)
    assert float(total[0] / total[-1]) > 10 * float(mean[0] / mean[-1])


def test_a_token_that_is_looked_at_and_one_that_nobody_saw() -> None:
    keys = torch.randn(2, 2, 30, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    keys[1, :, 11] = 9.0
    probes = noted(None, torch.ones(2, 4, 30, 4), 30)
    found = received(probes, [(0, keys)], 5, 30, 0.5, "normalized")
    assert found.shape == (2, 25) and int(found[1].argmax()) == 11 - 5
    early = type(probes)(probes.queries[:, :, :1], torch.tensor([10]))
    found = received(early, [(0, keys)], 5, 30, 0.5, "normalized")
    assert bool((found[:, 6:] > found[:, :6].amax()).all()), "what no probe has seen yet may matter"
