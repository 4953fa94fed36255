"""Optuna: its import, its states, its warnings and its database."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def import_optuna() -> Any:
    """Return the module ``optuna``, without its messages of progress; raise a sentence if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        advice = 'Install it with: pip install "pyro_vae[sweep]"'
        raise ValueError(f"Expected Optuna, which stores the trials of a sweep; got none. {advice}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Optuna's warnings that a heartbeat is experimental, and meant for its own loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?i).*heartbeat|fail_stale_trials")
        yield


def state_of(name: str) -> Any:
    """Return a state of a trial."""
    return import_optuna().trial.TrialState[name]


def local_url(path: Path) -> str:
    """Return the URL of a SQLite database in a file, whose name may have any characters."""
    from sqlalchemy import URL, make_url

    url = URL.create("sqlite", database=str(path)).render_as_string()
    return url if make_url(url).database == str(path) else f"sqlite:///{path}"  # before SQLAlchemy 2.1
