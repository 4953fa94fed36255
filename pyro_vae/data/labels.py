"""Hide labels, for a semi-supervised program."""

from dataclasses import replace

import torch

from pyro_vae.data.dataset import Dataset


def labelled(dataset: Dataset, num: int | None, seed: int = 0) -> Dataset:
    """Hide all but ``num`` training labels: column ``y`` has ``num / classes`` labels of each class, and -1 elsewhere.

    The validation and test data keep their labels, so a program can measure the accuracy of a classifier.

    Arguments:
        dataset: A data set whose labels are integers from 0.
        num: The number of labels to keep, a multiple of the number of classes. None keeps all labels.
        seed: The seed that selects the labelled data.

    Raises:
        ValueError: If the data set has no labels or too few of a class, or ``num`` is not a multiple of the classes.

    Example:
        >>> from pyro_vae.data import load
        >>> labelled(load("digits"), 20).train.columns["y"].unique(return_counts=True)[1].tolist()
        [1417, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    y = dataset.train.labels
    if num is None:
        return dataset
    if y is None:
        raise ValueError(f"Expected a data set with labels for labelled = {num}; {dataset.config['data']!r} has none.")
    classes, counts = y.unique(return_counts=True)
    per_class, remainder = divmod(num, len(classes))
    if num < 1 or remainder or per_class > counts.min():
        valid = f"a multiple of the {len(classes)} classes, at most {int(counts.min()) * len(classes):,}"
        raise ValueError(f"Expected labelled to be {valid}; got {num}.")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[y[order] == label][:per_class] for label in classes])
    labels = torch.full_like(y, -1, dtype=torch.int64).index_put((rows,), y[rows].long())
    train = replace(dataset.train, extra=dataset.train.extra | {"y": labels})
    config = dataset.config | {"labelled": num, "labelled_seed": seed}
    return replace(dataset, train=train, config=config, notes=(*dataset.notes, f"{num:,} labels shown"))
