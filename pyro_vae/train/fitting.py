"""Training: Pyro's SVI over minibatches."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_vae import checkpoint
from pyro_vae.compiled import fast_products, warn_if_slower
from pyro_vae.data import Dataset
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.seeds import alone, seeded
from pyro_vae.train.loop import Training
from pyro_vae.train.optimizers import Choice
from pyro_vae.train.processes import together
from pyro_vae.train.running import Run
from pyro_vae.train.settings import Logger, Settings, check_resumed, check_support, hook, splits_of


def fit(
    program: nn.Module,
    data: Dataset | Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    objective: Objective | pyro.infer.ELBO | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    run_dir: str | Path | None = None,
    progress: bool = True,
    lr_schedule: Literal["constant", "cosine", "one-cycle"] = "constant",
    clip_norm: float | None = None,
    compile: Literal["auto", "off", "graph", "inductor"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    patience: int | None = None,
    on_nan: Literal["stop", "skip"] = "stop",
    logger: Logger | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    optimizer: Choice = "adam",
    sleep: int = 0,
    on_epoch: Callable[[dict[str, list[float]]], Any] | None = None,
) -> dict[str, list[float]]:
    """Train a program by stochastic variational inference: Pyro's ``SVI`` and Adam, the step run as a graph.

    Elements of the data that are NaN are left out of the likelihood (:class:`pyro_vae.missing.Missing`). An untrained
    :class:`pyro_vae.VAE` starts where its decoder's mean is the data's, its VampPrior at training images, and its
    encoder's network sees the data's mean in place of missing elements. The seed reaches only this call, and Pyro's
    param store is put back. Under ``torchrun`` the processes share each batch, and the numbers are those of one.

    With a ``run_dir`` all that the next step depends on is saved there, in a hundredth of the time, and ``resume`` goes
    on from it: on one machine the numbers are the same to the last bit, whenever it was stopped. Ctrl-C and SIGTERM
    finish the step, save, and raise ``KeyboardInterrupt``; a second one stops at once.

    Arguments:
        program: A VAE, or any ``nn.Module`` with a ``model`` and a ``guide``, Pyro programs of the same arguments;
            trained in place, left in evaluation mode, on ``device``.
        data: From :func:`pyro_vae.data.load`; or the program's arguments, a tensor, a tuple of tensors or a dictionary
            of them by name, split by :func:`pyro_vae.data.from_columns`; a tensor for a VAE is of images, split by
            :func:`pyro_vae.data.from_tensor`.
        objective: One of :mod:`pyro_vae.objectives`, or any ``pyro.infer.ELBO``; None:
            :class:`pyro_vae.objectives.ELBO`. A schedule of its beta starts from its first step.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch, of all processes together.
        lr: The learning rate; with ``one-cycle`` the largest.
        seed: Seed of the order, the noise and the draws: on one machine the same losses, to the last bit.
        device: ``cpu`` or ``cuda``.
        run_dir: Folder for the weights, the configuration and the metrics, which may be renamed meanwhile; None to
            write nothing. The ``pyro-vae`` command makes one in runs/.
        progress: Whether to show a progress bar.
        lr_schedule: ``constant``; ``cosine``, to 0 over the run; ``one-cycle``, up over the first 0.3 of it and down
            to nearly 0 (Super-Convergence, Smith and Topin, 2018).
        clip_norm: Largest norm of the whole gradient, of a loss summed over the minibatch; a longer one is shortened.
        compile: How a step is run: ``graph``, what Pyro does recorded as tensor operations; ``inductor``, these
            compiled by TorchInductor; ``auto``, the graph, compiled where that pays; ``off``, plain Pyro.
        precision: ``auto``, float32, matrix products in the fastest way that is as accurate as torch's default;
            ``float32``, torch's default; ``bfloat16``, products of bfloat16 numbers, parameters in float32.
        patience: Stop after so many epochs without a better ELBO of the validation images, and go back to the weights
            of the best (Early Stopping - But When?, Prechelt, 1998); None to train all epochs and keep the last.
        on_nan: What to do at a loss or a gradient that is not finite: ``stop``, before it is taken in; ``skip``, leave
            the batch out, count it in the history as ``skipped``, and go on.
        logger: ``tensorboard``, to write the numbers there too.
        overwrite: Whether to take a run that is in ``run_dir`` away; without it that is an error.
        resume: Run directory to go on in, in place of ``run_dir``, with the arguments that the run began with; but
            ``on_nan``, ``device``, ``logger`` and where the data lie may change, and ``epochs`` may be more where
            neither the learning rate nor beta follows the length of the run.
        optimizer: ``adam`` (Adam: A Method for Stochastic Optimization, Kingma and Ba, 2015); or ``muon`` for the
            weights of dense layers (Muon: An optimizer for hidden layers in neural networks, Jordan et al., 2024) and
            Adam for all else: fewer, dearer steps to a better ELBO, best with batches of 500 and more and a learning
            rate that falls.
        sleep: Steps of training the guide alone, after the last epoch, on data that the model draws
            (:func:`pyro_vae.posterior.sleep`): for a guide that fits few data too well.
        on_epoch: Called after each epoch with the history so far, the program in evaluation mode: to draw, to log, to
            evaluate. Its seconds are not counted, and its draws move no other draw.

    Returns:
        Lists with one number an epoch, in nats per datum, whatever a plate or ``poutine.scale`` scales: ``train``, the
        objective's loss, a mean over the epoch's steps; ``valid``, minus the ELBO at beta = 1 on the validation
        images, if there are any, which is ``valid_reconstruction``, E[-log p(x | z)], plus ``valid_kl``; and
        ``seconds``, of the epoch. With an objective of this package also ``train_at_beta_1``, minus the ELBO at
        beta = 1 of the draws of ``train``, and ``beta``, at the epoch's last step.

    Raises:
        ValueError: If an argument is out of range, all training images are the same, an argument of the program is
            missing, x is outside a VAE's likelihood's support or of another shape than it was built for, torch cannot
            use the device, a schedule would not have ended by the last step, ``run_dir`` holds a run or files of your
            own, another process writes to it, or the run to go on with is of other arguments or data or cannot be read.
        NotFinite: If training diverges: a ``ValueError``, whose ``record`` says where.
        OSError: If the run cannot be written; what was saved before stays.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; it says how to go on.

    Example:
        >>> from pyro_vae import VAE, data
        >>> history = fit(VAE.build((1, 8, 8), latent=2), data.load("digits"), epochs=2, progress=False)
        >>> history["train"][1] < history["train"][0]
        True
    """
    arguments = locals() | {"device": str(device)}
    arguments = {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}
    settings = Settings(**{name: arguments[name] for name in Settings.__dataclass_fields__})
    if logger and not (resume or run_dir):
        raise ValueError(f"Expected a run_dir for {logger} to write to; got none.")
    if resume and run_dir:
        raise ValueError(f"Expected resume, which writes where it goes on, or run_dir; got {resume!r} and {run_dir!r}.")
    before = checkpoint.config_of(Path(resume)) if resume else {}
    with alone(program, torch.device(settings.device)), ExitStack() as stack:
        warn_if_slower(precision, torch.device(settings.device))
        objective = ELBO() if objective is None else objective
        if not isinstance(objective, pyro.infer.ELBO):
            raise ValueError(f"Expected an objective, as objectives.ELBO(); got {objective!r}.")
        dataset = splits_of(program, data)
        if patience and not len(dataset.valid):
            raise ValueError("Expected images held out for validation, which patience watches; got valid = 0.")
        processes = stack.enter_context(together(settings.device))
        stack.enter_context(seeded(settings.seed, settings.device))
        stack.enter_context(pyro.get_param_store().scope())
        stack.enter_context(fast_products(precision))
        program.to(settings.device).eval()  # what is looked at first may be one row
        check_support(program, dataset)
        training = Training(program, dataset, objective, settings, processes)
        if isinstance(objective, Objective):
            objective.start(training.steps)
        config, place = dict[str, Any](), None  # and where the run's directory is, in the process that writes it
        if run_dir or resume:
            described = checkpoint.describe_program(program) | {"objective": checkpoint.describe(objective)}
            config = dataset.config | described | asdict(settings)
            if processes.rank == 0:
                hold = checkpoint.hold(Path(resume)) if resume else checkpoint.hold_new(str(run_dir), overwrite)
                place = stack.enter_context(hold)
        run = Run(training, place, dataset)
        if resume:
            check_resumed(checkpoint.about(resume).get("config") or before, config)
            checkpoint.check_data(resume, dataset.digests)
            run.restore(Path(resume))
            if run.folder:
                checkpoint.begin_again(run.folder, config)
        else:
            if start := hook(program, "start"):
                start(dataset)
            for tensor in program.state_dict().values():
                processes.same(tensor)  # all start from the same numbers
            if run.folder:
                checkpoint.begin(run.folder, config, dataset.digests, run.save)
        return run.train(progress, on_epoch)
