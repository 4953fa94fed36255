"""Execute notebooks and write them back with their outputs: ``python notebooks/execute.py [NOTEBOOK ...]``.

As many run at once as there are cores, on one thread each. A notebook runs in its folder, in a kernel of the Python
that runs this script, whatever kernels are installed. The files hold no times, no paths of the machine, and no metadata
that would change from run to run.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
TEMPORARY = re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/"
PATHS = re.compile("|".join([TEMPORARY, *(re.escape(f"{path}/") for path in (sys.prefix, HERE.parent, Path.home()))]))
KEPT = ("mystnb",)  # alternative texts of figures
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this script, not an installed kernel that happens to have the name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """What to start."""
        return KernelSpec(**get_kernel_dict())


async def execute(path: Path) -> str:
    """Execute a notebook and write it back; where a cell fails, leave the file unchanged and return the error."""
    try:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, kernel_manager_class=ThisPython, timeout=600, record_timing=False)
        client.resources = {"metadata": {"path": str(path.parent)}}
        client.extra_arguments = ["--log-level=ERROR"]
        client.coalesce_streams = True
        await client.async_execute()
    except CellExecutionError as error:
        cells = enumerate(notebook.cells, start=1)
        number, cell = next((i, c) for i, c in cells if any(o.output_type == "error" for o in c.get("outputs", [])))
        return f"cell {number} (id {cell.id}): {cell.source.splitlines()[0]} ...\n{error.ename}: {error.evalue}"
    except (CellTimeoutError, DeadKernelError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # it needs a kernel
            holder, key = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
            if key in holder:
                holder[key] = PATHS.sub("", holder[key])
    path.write_text(nbformat.writes(notebook) + "\n")
    return ""


async def execute_all(paths: list[Path]) -> bool:
    """Execute notebooks, as many at once as there are cores, and print a line for each; return whether one failed."""
    cores = asyncio.Semaphore(os.cpu_count() or 1)

    async def report(path: Path) -> str:
        async with cores:
            start = time.perf_counter()
            error = await execute(path)
            print(f"{path.name:45} {'failed' if error else f'{time.perf_counter() - start:.0f} s'}", flush=True)
        print(*(f"    {line}" for line in error.splitlines()[:8]), sep="\n", end="\n" if error else "")
        return error

    return any(await asyncio.gather(*map(report, paths)))


def main(names: list[str]) -> int:
    """Execute the notebooks of the given names, or all beside this script; return 1 if any failed, else 0."""
    with tempfile.TemporaryDirectory() as profile:
        os.environ["IPYTHONDIR"] = profile  # the user's own IPython settings stay out
        os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, where ipywidgets is not installed
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        paths = [Path(name).resolve() for name in names] or sorted(HERE.glob("*.ipynb"))
        return int(asyncio.run(execute_all(paths)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
