"""Model classes imported without PyTorch's compiler and SciPy's optimizers, which come when they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEAN = """
import sys
import torch
from laconic.sources.lean import lean_imports

with lean_imports():
    from transformers import LlamaConfig, LlamaForCausalLM
    import transformers.integrations.eager_paged  # has functions that say "do not compile this"
    from transformers.loss import loss_for_object_detection as loss

    noted = torch.compiler.disable(lambda x: x.softmax(0))
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.device("meta"):  # initializes by functions that PyTorch keeps from its compiler
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))

model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
assert model(torch.arange(4)[None]).logits.shape == (1, 4, 8)
late = {"torch._dynamo", "torch._inductor", "scipy.optimize"} & set(sys.modules)
assert not late, late

rows, columns = loss.linear_sum_assignment([[3.0, 1.0], [1.0, 3.0]])
assert columns.tolist() == [1, 0] and "scipy.optimize" in sys.modules

import torch._dynamo

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
x = torch.ones(2)
assert torch.equal(torch.compile(lambda x: noted(x + 1) * 2, backend=backend)(x), torch.ones(2))
names = [str(n.target) for g in graphs for n in g.graph.nodes]
assert "add" in str(names) and "softmax" not in str(names), names  # the note was passed on: what is inside was not compiled
"""


def test_a_model_runs_without_its_compiler_which_is_told_all_when_it_comes() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ASKED = """
import sys
from laconic.sources.lean import lean_imports

with lean_imports():
    import {0}
    found = {1}
    assert found is not None and {0} is sys.modules["{0}"]
import {0}
assert {1} is found
"""


@pytest.mark.parametrize(
    ("module", "what"),
    [("torch._dynamo", "torch._dynamo.reset"), ("torch._dynamo.config", "torch._dynamo.config"),
     ("scipy.optimize", "scipy.optimize.OptimizeResult"), ("scipy.optimize.elementwise", "scipy.optimize.elementwise")],
)  # fmt: skip
def test_whatever_else_is_asked_for_is_the_module_s_own(module: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(module, what)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
