"""Several processes: whose rows are whose, one noise for all, and the same numbers as one process."""

import csv
import socket
import subprocess
import sys
from functools import partial

import forked
import pytest
import torch

from pyro_vae import VAE
from pyro_vae.__main__ import main
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO, MMD, TotalCorrelation
from pyro_vae.programs import VQVAE
from pyro_vae.traces.weights import systematic_resample
from pyro_vae.train.processes import OF_Z, Processes

DRAWS = {
    "normal_": lambda p: torch.empty_like(p).normal_(),
    "uniform_": lambda p: torch.empty_like(p).uniform_(-1, 1),
    "exponential_": lambda p: torch.empty_like(p).exponential_(),
    "rand": lambda p: torch.rand(p.shape),
    "randn": lambda p: torch.randn(p.shape, dtype=torch.float64),
    "rand_like": lambda p: torch.rand_like(p),
    "randn_like": lambda p: torch.randn_like(p),
    "bernoulli": lambda p: torch.bernoulli(p),
}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_row_is_some_ones_and_in_order(world):
    rows = torch.randperm(11)
    assert torch.cat([Processes(rank, world).own_rows(rows) for rank in range(world)]).equal(rows)


@pytest.mark.parametrize("dim", [0, -2])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_noise_is_that_of_one_process(draw, dim):
    """The parts that three processes draw, under one seed, are together what one process draws."""
    p = torch.rand(11, 4)
    parts = []
    for rank in range(3):
        processes = Processes(rank, 3)
        torch.manual_seed(5)
        with processes.noise(11, dim):
            parts.append(draw(processes.own_rows(p)))
    torch.manual_seed(5)
    whole = draw(p)
    torch.manual_seed(20261122)
    assert torch.cat(parts).equal(whole)
    assert parts[0].dtype == whole.dtype


def test_particles_are_drawn_by_weight_as_by_one_process():
    log_w = torch.randn(6, 9)
    torch.manual_seed(1)
    whole = systematic_resample(log_w, 3)
    for rank in range(2):
        part = Processes(rank, 2)
        torch.manual_seed(1)
        with part.noise(9, OF_Z):
            found = systematic_resample(part.own_rows(log_w.T).T, 3)
        assert found.equal(part.own_rows(whole.T).T)
    torch.manual_seed(20261122)


def test_other_noise_is_left_alone():
    with Processes(0, 2).noise(10, -2):
        assert torch.rand(3).shape == torch.rand(size=(3,)).shape == (3,)
        assert torch.randn(4, 2).shape == (4, 2)
    assert Processes().noise(10, -2) is None


def test_a_batch_too_small_for_all_gets_a_sentence():
    with pytest.raises(ValueError, match="Expected a row for each of 3 processes in every batch; got a batch of 2"):
        Processes(0, 3).check_sizes([128, 2])


def batch_normalised():
    vae = VAE.build((4,), latent=2)
    vae.encoder.network.layers.append(torch.nn.BatchNorm1d(4))
    return vae


OF_A_BATCH = {
    "free_bits = 0.1": (lambda: VAE.build((4,), latent=2), ELBO(free_bits=0.1)),
    "TotalCorrelation": (lambda: VAE.build((4,), latent=2), ELBO(penalty=TotalCorrelation())),
    "MMD": (lambda: VAE.build((4,), latent=2), ELBO(penalty=MMD())),
    "scale = 'optimal'": (lambda: VAE.build((4,), latent=2, likelihood=partial(Gaussian, scale="optimal")), ELBO()),
    "BatchNorm1d": (batch_normalised, ELBO()),
    "VQ": (lambda: VQVAE.build((1, 2, 2), codes=4, dim=2, grid=(1, 1), network=MLP), ELBO()),
}


@pytest.mark.parametrize("what", OF_A_BATCH)
def test_what_is_of_a_whole_batch_is_for_one_process(what):
    program, objective = OF_A_BATCH[what]
    with pytest.raises(ValueError, match=f"one process for {what}, .*; got 2"):
        Processes(0, 2).check_batch_statistics(program(), objective)
    Processes().check_batch_statistics(program(), objective)
    Processes(0, 2).check_batch_statistics(VAE.build((4,), latent=2), ELBO())


def test_a_process_that_has_ended_is_said(monkeypatch):
    for words, kind in (("Connection closed by peer", ConnectionError), ("Invalid scalar type", RuntimeError)):

        def fail(tensor, words=words):
            raise RuntimeError(words)

        monkeypatch.setattr(torch.distributed, "all_reduce", fail)
        with pytest.raises(kind, match="--resume" if kind is ConnectionError else words):
            Processes(0, 2).all_reduce(torch.ones(1))


DISTRIBUTED = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
BINARY = ["--binarize", "dynamic", "--likelihood", "Bernoulli"]
TRAIN = ["train", "--epochs", "2", "--latent", "2", "--network.hidden", "[16]", *BINARY]


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def in_two(folder, *words):
    """Run the command in two processes, told what torchrun tells them; return what each printed."""
    told = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{free_port()}"}
    told |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    files, errors = ([folder / f"{name}{rank}" for rank in range(2)] for name in ("printed", "said"))
    two = [
        forked.start(forked.command(*words), folder, file, errors[rank], RANK=f"{rank}", LOCAL_RANK=f"{rank}", **told)
        for rank, file in enumerate(files)
    ]
    try:
        for process in two:
            process.join(300)
            assert process.exitcode == 0, [file.read_text() for file in errors]
    finally:
        for process in two:
            process.kill()
    return [file.read_text() for file in files]


def torchrun(folder, *program):
    """Run a program in two processes."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", f"{free_port()}"]
    told = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run([sys.executable, *launch, *program], check=False, **told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped, of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    printed, nothing = in_two(folder, *TRAIN, "--run_dir", "run")
    assert not nothing
    return folder / "run", printed


def losses(run):
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return torch.tensor([[float(value) for name, value in row.items() if name != "seconds"] for row in rows])


@pytest.mark.processes
@DISTRIBUTED
def test_two_processes_give_the_numbers_of_one(whole, elsewhere, unrendered, tmp_path, capsys):
    """Images are binarised alike. The last batch, of 29, does not divide by 2. The first process alone prints."""
    run, printed = whole
    assert main([*TRAIN, "--run_dir", "run"]) == 0
    torch.testing.assert_close(losses(tmp_path / "run"), losses(run), rtol=1e-5, atol=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == len(printed.splitlines())


STOPPED = """
import os, signal, sys
import torch
from pyro_vae import VAE, fit
from pyro_vae.__main__ import main
from pyro_vae.train import loop

fit(VAE.build((4,), latent=2), torch.rand(20, 4), epochs=1, progress=False, compile="off")  # and then another

step, steps = loop.Training._step, iter(range(10**6))

def stopped(self, rows):
    if next(steps) == 15 and os.environ["RANK"] == "1":  # one is asked, and all stop
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, rows)

loop.Training._step = stopped
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.processes
@DISTRIBUTED
def test_two_processes_stop_together_and_go_on_to_the_last_bit(whole, tmp_path):
    (tmp_path / "stopped.py").write_text(STOPPED)
    stopped = torchrun(tmp_path, "stopped.py", *TRAIN, "--run_dir", "run")
    assert stopped.returncode == 1
    assert "The weights so far are in run. To resume: pyro-vae train --resume run" in stopped.stderr
    in_two(tmp_path, "train", "--resume", "run")
    for name in ("metrics.csv", "model.safetensors"):
        assert (whole[0] / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
