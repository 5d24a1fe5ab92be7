"""Jobs divided among threads: every share once, whoever's threads they are; what goes wrong is raised."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from numba import njit

from laconic.kernels import sharing

KINDS = ["PyTorch's", "ours"]


@njit(nogil=True)
def _count(counter, done):
    while True:
        i = sharing.take(counter, 1)
        if i >= done.shape[0]:
            return
        done[i] += 1


@pytest.fixture(params=KINDS)
def team(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if request.param == "ours":
        monkeypatch.setattr(sharing, "_team", lambda threads: None)
    elif sharing._team(2) is None:
        pytest.skip("PyTorch has no team of GNU OpenMP here")
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_share_is_taken_once(team, threads):
    for n in (0, 1, 1000):
        done = np.zeros(n, np.int64)
        sharing.divide(threads, _count, done)
        assert (done == 1).all()


def test_the_team_is_that_of_pytorch():
    own, system, other = "/v/torch/lib/libgomp-a.so.1", "/usr/lib/libgomp.so.1", "/v/faiss_cpu.libs/libgomp-e.so.1"
    assert sharing._of_torch({own, other}) == sharing._of_torch({own}) == own
    assert sharing._of_torch({system}) == system
    assert sharing._of_torch({system, other}) is sharing._of_torch(set()) is None


def test_both_threads_are_there(team):
    met, both = [], threading.Barrier(2, timeout=20)

    def work(counter):
        both.wait()  # one thread alone would wait for ever
        met.append(threading.get_ident())

    sharing.divide(2, work)
    assert len(set(met)) == 2


def test_what_a_thread_raises_is_raised(team):
    def work(counter):
        raise ValueError("of a share")

    with pytest.raises(ValueError, match="of a share"):
        sharing.divide(2, work)
    done = np.zeros(10, np.int64)
    sharing.divide(2, _count, done)
    assert (done == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_threads_of_its_own():
    code = """
import os, numpy as np, torch, warnings
from tests.kernels.test_sharing import _count
from laconic.kernels import sharing
warnings.simplefilter("ignore")
torch.set_num_threads(2)
torch.ones(500, 500) @ torch.ones(500, 500)
sharing.divide(2, _count, np.zeros(10, np.int64))
child = os.fork()
if not child:
    done = np.zeros(100, np.int64)
    sharing.divide(2, _count, done)
    os._exit(0 if (done == 1).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
