"""The columns of a table: names, levels of categories, and the units of standardised numbers."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

LEAST = 1e-13  # the smallest scale over the size of the mean: less is rounding in float64


@dataclass(frozen=True)
class Column:
    r"""A column of a table. A number v becomes :math:`(v - \text{mean}) / \text{scale}`, a category its code.

    Attributes:
        name: The name in the table.
        levels: The names of the categories, by code; empty for numbers.
        mean, scale: The mean and the standard deviation of the training rows; 0 and 1 if nothing is standardised.
    """

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} ({len(self.levels)} levels)" if self.levels else self.name


@dataclass(frozen=True)
class Schema:
    """The columns of a table by role. A run keeps its schema in ``schema.json``.

    Attributes:
        x: The columns of x.
        labels: The column of the labels, if any.
        covariates: The columns of y, in order: a category has one column of y for each level, a number has one.

    Example:
        >>> schema = Schema((Column("age", mean=40.0, scale=10.0), Column("size", mean=2.0, scale=0.5)))
        >>> schema.in_units(torch.tensor([[1.0, -2.0]])).tolist()
        [[50.0, 1.0]]
    """

    x: tuple[Column, ...]
    labels: Column | None = None
    covariates: tuple[Column, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of x; empty if these are 0, 1, 2, and so on."""
        names = tuple(column.name for column in self.x)
        return () if names == tuple(map(str, range(len(names)))) else names

    @property
    def standardised(self) -> bool:
        """Whether a column of x has a mean other than 0, or a scale other than 1."""
        return any((column.mean, column.scale) != (0, 1) for column in self.x)

    @property
    def of_y(self) -> tuple[Column, ...]:
        """The columns of y, which are the covariates, or else the labels."""
        return self.covariates or ((self.labels,) if self.labels else ())

    @property
    def units(self) -> Tensor:
        """The means and the scales of the columns of x, of shape ``(2, columns)``, in float64."""
        return torch.tensor([(column.mean, column.scale) for column in self.x], dtype=torch.float64).T

    def in_units(self, x: Tensor) -> Tensor:
        """Return x, of shape ``(*, columns)``, in the units of the table."""
        mean, scale = self.units
        return x.cpu() * scale + mean if self.standardised else x

    def log_scale(self, mask: Tensor | None = None) -> float:
        r"""Return the mean over rows of :math:`\sum_i \log s_i` over the observed columns, in nats per row.

        -log p(x) in the units of the table is larger by this number.
        """
        logs = self.units[1].log()
        return (logs if mask is None else mask.cpu().double() @ logs).sum().item() / (1 if mask is None else len(mask))

    def y_from(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Return the codes of one category, ``(B,)``, or numbers and one-hot vectors side by side, ``(B, *)``."""
        if len(self.covariates) == 1 and self.covariates[0].levels:
            return columns[self.covariates[0].name]
        pairs = [(columns[column.name], len(column.levels)) for column in self.covariates]
        return torch.cat([one_hot(v, num).float() if num else v.unsqueeze(1) for v, num in pairs], 1)

    def columns_from(self, y: Tensor) -> dict[str, list[Any]]:
        """Return the columns of the table by name for y, the inverse of :meth:`y_from`."""
        sizes = [len(column.levels) or 1 for column in self.of_y]
        y = one_hot(y.long(), sizes[0]) if y.dim() == 1 and self.of_y[0].levels else y.reshape(len(y), -1)
        columns = dict[str, list[Any]]()
        for column, part in zip(self.of_y, y.split(sizes, dim=1), strict=True):
            codes, numbers = part.argmax(1).tolist(), part[:, 0].double() * column.scale + column.mean
            columns[column.name] = [column.levels[i] for i in codes] if column.levels else numbers.tolist()
        return columns

    def standardise(self, x: Iterable[Tensor], covariates: Mapping[str, Tensor]) -> Self:
        """Return the schema with the mean and the standard deviation of each numeric column.

        ``x`` has batches of rows; ``covariates`` has columns by name. NaN elements do not count. A constant column
        raises a ValueError.
        """
        of_y = [c if c.levels else _standardised((c,), [covariates[c.name][:, None]])[0] for c in self.covariates]
        return replace(self, x=_standardised(self.x, x), covariates=tuple(of_y))

    def with_units_of(self, other: "Schema") -> Self:
        """Return the schema with the means and scales that another schema has for its columns."""
        of_x, of_y = ({column.name: column for column in columns} for columns in (other.x, other.covariates))
        absent = [c.name for c in self.x if c.name not in of_x]
        absent += [c.name for c in self.covariates if c.name not in of_y and not c.levels]
        if absent or not other.standardised:
            got = f"none of {absent[0]!r}" if absent else "columns that are not standardised"
            raise ValueError(f"Expected a schema with a mean and a scale of each column, to standardise it; got {got}.")
        covariates = tuple(column if column.levels else of_y[column.name] for column in self.covariates)
        return replace(self, x=tuple(of_x[column.name] for column in self.x), covariates=covariates)

    def to_json(self) -> str:
        """Return the schema as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the ``schema.json`` of a run.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a schema.
        """

        def column(fields: dict[str, Any]) -> Column:
            result = Column(str(fields["name"]), tuple(map(str, fields["levels"])), fields["mean"], fields["scale"])
            if not (math.isfinite(result.mean) and 0 < result.scale < math.inf):
                raise ValueError(f"{result.name!r} has no finite mean and positive scale")
            return result

        try:
            fields = json.loads(Path(path).read_text())
            x, covariates = (tuple(map(column, fields[name])) for name in ("x", "covariates"))
            labels = None if fields["labels"] is None else column(fields["labels"])
            return cls(x, labels, covariates)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"Expected the schema.json of a run; there is nothing at {str(path)!r}.") from error
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"Expected the schema.json of a run; could not read {str(path)!r} ({reason}).") from error


def _standardised(columns: Sequence[Column], parts: Iterable[Tensor]) -> tuple[Column, ...]:
    """Return columns with the mean and the standard deviation of rows, without NaN; refuse a constant column."""
    count, mean, square = (torch.zeros(len(columns), dtype=torch.float64) for _ in range(3))
    for part in parts:  # Chan, Golub and LeVeque (1983): an update without cancellation
        x = part.double()
        number = (~x.isnan()).sum(0)
        here, total = x.nansum(0) / number.clamp(min=1), (count + number).clamp(min=1)
        square += (x - here).square().nansum(0) + (here - mean).square() * count * number / total
        mean, count = mean + (here - mean) * number / total, count + number
    scale = (square / count).sqrt()
    if constant := (~((LEAST * mean.abs() < scale) & scale.isfinite())).nonzero().flatten().tolist():
        first, more = constant[0], f", and {len(constant) - 1:,} more such columns" * (len(constant) > 1)
        got = "none" if not count[first] else f"only {mean[first]:.6g}" if scale[first].isfinite() else "infinite ones"
        raise ValueError(
            f"Expected finite numbers that differ in the training rows of each column, to standardise it; got {got} in "
            f"{columns[first].name!r}{more}. Leave out such columns."
        )
    units = zip(columns, mean.tolist(), scale.tolist(), strict=True)
    return tuple(replace(column, mean=m, scale=s) for column, m, s in units)
