"""Run notebooks, and keep what their cells show: the cells that had outputs get new ones, no other does.

    python scripts/run_notebook.py nbs/01_dit.ipynb

A cell marked `#| eval: false`, `#| notest`, `#| slow` or `#| gpu` is not run, and stays as it is. Where a
cell fails, nothing is written.
"""
import os, sys
from pathlib import Path
import nbformat
from lint_notebooks import directive
from nbclient import NotebookClient
from strip import strip_file
from sas_nb.writing import atomic

NOT_RUN = "notest", "slow", "gpu"


def is_run(cell) -> bool:
    marked = any(directive(cell.source, mark) is not None for mark in NOT_RUN)
    return cell.cell_type == "code" and not marked and directive(cell.source, "eval") != "false"


class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **how):
        return await super().async_execute_cell(cell, cell_index, **how) if is_run(cell) else cell


def run(path: Path):
    "Run a notebook in its folder, and write its outputs."
    nb = nbformat.read(path, as_version=4)
    had = [bool(c.get("outputs")) for c in nb.cells]
    about = dict(nb.metadata)
    where = {"metadata": {"path": str(path.parent)}}
    Client(nb, timeout=None, kernel_name="python3", resources=where).execute()
    for cell, shown in zip(nb.cells, had):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code" and not shown: cell.outputs = []
        if cell.cell_type == "code": cell.execution_count = None
        for out in cell.get("outputs", []):
            if "execution_count" in out: out.execution_count = None
    nb.metadata = nbformat.from_dict(about)
    with atomic(path) as tmp: nbformat.write(nb, tmp)
    strip_file(path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:]: run(Path(name))
