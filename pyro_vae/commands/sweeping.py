"""The subcommand ``sweep``: a run for each setting and seed of a file."""

from collections import Counter
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import command_on, display_path
from pyro_vae.sweep import best_of, setting_name, sweep
from pyro_vae.words import nats


def _sweep(file: str, study_dir: str | None = None, **options: Any) -> None:
    """Train a run for each setting and seed in a YAML file of options, in several processes.

    Args:
        file: A YAML file of options of ``train``; a list is a grid, and ``seeds: 5`` trains each setting five times.
        study_dir: Directory of the study; by default studies/ and the name of the file.
        options: Arguments of ``sweep.sweep``.
    """
    folder = Path(study_dir or Path("studies") / Path(file).stem).absolute()
    rows = sweep(file, folder, **options)
    counts = Counter(row["state"] for row in rows)
    print(f"\n{len(rows)} runs: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    for row in rows:
        if row["message"]:
            print(f"failed:  {row['run']}: {row['message']}")
    if best := best_of(rows):
        print(f"best:    {setting_name(best[0])}, {nats(best[1])} nats per validation datum")
    if rows and all(row["state"] == "failed" for row in rows):
        raise ValueError(f"Expected a run that trains; all {len(rows)} failed. Mend them, and add --retry true.")
    complete = {row["number"]: folder / "runs" / row["run"] for row in rows if row["state"] == "complete"}
    here = [run for run in complete.values() if run.is_dir()]  # one of each setting
    print(f"table:   {display_path(folder / 'trials.csv')}")
    if here:
        print(f"more:    {command_on('compare', folder, here)}")
