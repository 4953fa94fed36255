"""Labels of some data, for a program that learns from few."""

from dataclasses import replace

import torch

from pyro_vae.data.dataset import Dataset


def labelled(dataset: Dataset, num: int | None, seed: int = 0) -> Dataset:
    """Show the labels of ``num`` training data, as many of each class, as column ``y``; -1 stands for the others.

    Labels of the validation and test data stay, to measure a classifier by.

    Arguments:
        dataset: Of labels from 0 on.
        num: A multiple of the number of classes; None: all labels.
        seed: Which data: another is another set of labels.

    Raises:
        ValueError: If the data set has no labels, or too few of a class.

    Example:
        >>> from pyro_vae.data import load
        >>> labelled(load("digits"), 20).train.columns["y"].unique(return_counts=True)[1].tolist()
        [1417, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    y = dataset.train.labels
    if num is None:
        return dataset
    if y is None:
        raise ValueError(f"Expected labels, of which to show {num}; {dataset.config['data']!r} has none.")
    classes, counts = y.unique(return_counts=True)
    each, rest = divmod(num, len(classes))
    if num < 1 or rest or each > counts.min():
        right = f"a multiple of the {len(classes)} classes, at most {int(counts.min()) * len(classes):,}"
        raise ValueError(f"Expected labelled to be {right}, as many of each; got {num}.")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[y[order] == label][:each] for label in classes])
    shown = torch.full_like(y, -1, dtype=torch.int64).index_put((rows,), y[rows].long())
    train = replace(dataset.train, extra=dataset.train.extra | {"y": shown})
    config = dataset.config | {"labelled": num, "labelled_seed": seed}
    return replace(dataset, train=train, config=config, notes=(*dataset.notes, f"{num:,} labels shown"))
