"""``fit``: train a program by Pyro's SVI over minibatches."""

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
from pyro_vae.seeds import exclusive, seeded
from pyro_vae.train.loop import Training
from pyro_vae.train.optimizers import Choice, Schedule
from pyro_vae.train.processes import process_group
from pyro_vae.train.running import Run
from pyro_vae.train.settings import (
    Logger,
    Settings,
    check_program,
    check_resumed,
    check_support,
    hook,
    learning_rate,
    outside,
    splits_of,
    without_gradients,
)


def fit(
    program: nn.Module,
    data: Dataset | Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    objective: Objective | pyro.infer.ELBO | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    run_dir: str | Path | None = None,
    progress: bool = True,
    lr_schedule: Schedule | None = None,
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
    """Train a program by stochastic variational inference, with Pyro's ``SVI`` and steps that run as a graph.

    The likelihood leaves out NaN elements of the data (:class:`pyro_vae.missing.Missing`). An untrained
    :class:`pyro_vae.VAE` starts with the data's mean as the decoder's mean, with training images in a VampPrior, and
    with the data's mean in place of missing inputs of the encoder. The call leaves the global random state and Pyro's
    param store unchanged. Under ``torchrun`` the processes share each batch; the results match one process.

    With a ``run_dir``, ``fit`` saves the full training state, in at most 1% of the time, and ``resume`` continues
    from the saved state. On the same machine the result is bit-identical to an uninterrupted run. After Ctrl-C or
    SIGTERM, ``fit`` finishes the step, saves, and raises ``KeyboardInterrupt``. A second signal stops at once.

    Arguments:
        program: A VAE, or any ``nn.Module`` whose methods ``model`` and ``guide`` are Pyro programs with the same
            arguments. ``fit`` trains the program in place, and leaves the program in evaluation mode on ``device``.
        data: A dataset from :func:`pyro_vae.data.load`; the program's arguments as a tensor, a tuple of tensors or a
            dictionary of tensors (split by :func:`pyro_vae.data.from_columns`); or a tensor of images for a VAE
            (split by :func:`pyro_vae.data.from_tensor`).
        objective: An objective of :mod:`pyro_vae.objectives`, or any ``pyro.infer.ELBO``; None for
            :class:`pyro_vae.objectives.ELBO`. A schedule of beta starts at its first step.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch, summed over all processes.
        lr: The learning rate, for a schedule the largest one; None for 3e-3, or 1e-3 with ``patience``. On resume, None
            is the learning rate of the run.
        seed: Seed of the images' order, the noise and the draws. On one machine, equal seeds give bit-identical runs.
        device: ``cpu`` or ``cuda``.
        run_dir: Directory for weights, configuration and metrics; None to write nothing. You may rename the directory
            during the run. The ``pyro-vae`` command creates a directory in runs/.
        progress: Whether to show a progress bar.
        lr_schedule: ``trapezoid``, from a third up over 100 steps, constant, and down to 0 over the last 0.3 of the
            run (`Scaling Vision Transformers <https://arxiv.org/abs/2106.04560>`_, Zhai et al., 2022); ``constant``;
            ``cosine``, to 0 over the run; ``one-cycle``, up over the first 0.3 of the run and down to nearly 0
            (`Super-Convergence <https://arxiv.org/abs/1708.07120>`_, Smith and Topin, 2018). None for ``trapezoid``, or
            ``constant`` with ``patience``, where the length of the run is unknown. On resume, None is the run's.
        clip_norm: Largest norm of the gradient over all parameters, of the loss summed over the minibatch.
        compile: How a step runs: ``graph``, the tensor operations of Pyro's step, recorded once; ``inductor``, the
            graph compiled by TorchInductor; ``auto``, a graph, compiled if this saves time; ``off``, plain Pyro.
        precision: Precision of matrix products: ``auto``, the fastest precision with the accuracy of torch's float32
            default; ``float32``, torch's default; ``bfloat16``, with parameters in float32.
        patience: Epochs without a better validation ELBO before training stops and returns to the best weights (Early
            Stopping - But When?, Prechelt, 1998); None to train all epochs and keep the last weights.
        on_nan: Action after a non-finite loss or gradient: ``stop`` training before the update; or ``skip`` the batch
            and count the batch in the history as ``skipped``.
        logger: ``tensorboard`` to also write the history to TensorBoard.
        overwrite: Whether to replace a run in ``run_dir``. If False, a run in ``run_dir`` is an error.
        resume: Directory of the run to continue, in place of ``run_dir``. Pass the arguments of that run. Only
            ``on_nan``, ``device``, ``logger`` and the place of the data may change. ``epochs`` may grow, unless beta, a
            ``cosine`` or a ``one-cycle`` depends on ``epochs``: the result is bit-identical to a run of that length. A
            ``trapezoid`` goes on from the last step before its fall.
        optimizer: ``adam`` (`Adam <https://arxiv.org/abs/1412.6980>`_, Kingma and Ba, 2015); or ``muon`` for the
            weights of dense layers (`Muon <https://kellerjordan.github.io/posts/muon/>`_, Jordan et al., 2024) and Adam
            for other parameters. Muon takes fewer, slower steps to a better ELBO, and is best with a batch_size of 500
            or more and a decreasing learning rate.
        sleep: Steps after the last epoch that train only the guide, on data drawn from the model
            (:func:`pyro_vae.posterior.sleep`). Use these steps for a guide that overfits few data.
        on_epoch: Function of the history so far. ``fit`` calls the function after each epoch, in evaluation mode.
            ``seconds`` leaves out the time of the call, and the training's random state stays unchanged.

    Returns:
        The history: a dictionary of lists with one number per epoch, in nats per datum, without the scale of plates
        and ``poutine.scale``. ``train`` is the mean of the objective's loss over the epoch's steps. ``valid`` is minus
        the ELBO at beta = 1 of the validation images, if any. ``valid`` is the sum of ``valid_reconstruction``,
        E[-log p(x | z)], and ``valid_kl``. ``seconds`` is the epoch's time. This package's objectives add ``beta`` at
        the epoch's last step, and ``train_at_beta_1``: minus the ELBO at beta = 1, for the draws of ``train``, but
        for ``PriorCrossEntropy``, which does not compute it.

    Raises:
        ValueError: If an argument is out of range; all training images are equal; an argument of the program is
            missing; x has another shape than the VAE's or lies outside its likelihood's support; torch cannot use the
            device; a schedule does not end within the run; ``run_dir`` holds a run or other files, or another process
            writes to it; or the run to resume has other arguments or data, or cannot be read.
        NotFinite: If training diverges: a ``ValueError`` whose ``record`` has the step, site and rows.
        OSError: If the run cannot be written; earlier files stay on disk.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; its message has the command to resume.

    See Also:
        :class:`pyro_vae.CompiledSVI`, for your own training loop. ``fit`` takes its steps with this class.

    Example:
        >>> from pyro_vae import VAE, data
        >>> history = fit(VAE.build((1, 8, 8), latent=2), data.load("digits"), epochs=2, progress=False)
        >>> history["train"][1] < history["train"][0]
        True
    """
    arguments = locals() | {"device": str(device)}
    arguments = {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}
    before = checkpoint.config_of(Path(resume)) if resume else {}
    arguments |= learning_rate(arguments["lr"], lr_schedule, patience, before)
    settings = Settings(**{name: arguments[name] for name in Settings.__dataclass_fields__})
    if logger and not (resume or run_dir):
        raise ValueError(f"Expected a run_dir for {logger} to write to; got none.")
    if resume and run_dir:
        raise ValueError(
            f"Expected resume, which writes to the resumed run, or run_dir; got {resume!r} and {run_dir!r}."
        )
    with exclusive(program, torch.device(settings.device)), ExitStack() as stack:
        warn_if_slower(precision, torch.device(settings.device))
        objective = ELBO() if objective is None else objective
        if not isinstance(objective, pyro.infer.ELBO):
            raise ValueError(f"Expected an objective, as objectives.ELBO(); got {objective!r}.")
        check_program(program)
        part = objective.part_of(program) if isinstance(objective, Objective) else program
        if part is not program and sleep:
            raise ValueError(f"Expected sleep = 0, since {type(objective).__name__} trains no guide; got {sleep}.")
        stack.enter_context(without_gradients(outside(part, program)))
        dataset = splits_of(program, data)
        if patience and not len(dataset.valid):
            raise ValueError("Expected images held out for validation, for patience; got valid = 0.")
        processes = stack.enter_context(process_group(settings.device))
        stack.enter_context(seeded(settings.seed, settings.device))
        stack.enter_context(pyro.get_param_store().scope())
        stack.enter_context(fast_products(precision))
        program.to(settings.device).eval()  # the first checks may run one row
        check_support(program, dataset)
        training = Training(program, dataset, objective, settings, processes)
        if isinstance(objective, Objective):
            objective.start(training.steps)
        config, locate = dict[str, Any](), None  # the run's directory, in the process that writes
        if run_dir or resume:
            spec = checkpoint.program_spec(program) | {"objective": checkpoint.to_spec(objective)}
            config = dataset.config | spec | asdict(settings)
            if processes.rank == 0:
                lock = checkpoint.lock(Path(resume)) if resume else checkpoint.lock_new(str(run_dir), overwrite)
                locate = stack.enter_context(lock)
        run = Run(training, locate, dataset)
        if resume:
            check_resumed(checkpoint.load_environment(resume).get("config") or before, config)
            checkpoint.check_data(resume, dataset.digests)
            run.restore(Path(resume))
            if run.folder:
                checkpoint.append_resume(run.folder, config)
        else:
            if start := hook(program, "start" if part is program else "start_prior"):
                start(dataset)
            for tensor in program.state_dict().values():
                processes.broadcast(tensor)  # all processes start from the same weights
            if run.folder:
                checkpoint.write_header(run.folder, config, dataset.digests, run.save, dataset.schema)
        return run.train(progress, on_epoch)
