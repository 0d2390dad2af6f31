"""Runs a notebook without Jupyter: its cells one after the other, in one namespace.

    python tests/support/notebook_runs.py docs/notebooks/own_loop.ipynb FOLDER [--write]

runs it in a folder with a small store (that of docs/start_from_trl.md) and prints the outputs of
each cell as JSON; with ``--write`` they are written into the notebook.
"""

import ast
import base64
import io
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Output = dict[str, Any]  # as nbformat 4 has it


def run_notebook(path: Path) -> list[list[Output]]:
    """Return the outputs of each cell of code, run in the working directory."""
    import matplotlib

    matplotlib.use("Agg")
    warnings.simplefilter("error")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(each["source"]) for each in cells if each["cell_type"] == "code"]
    return [_run_cell(code, f"{path.name}, cell {n}", namespace) for n, code in enumerate(codes, 1)]


def _run_cell(code: str, where: str, namespace: dict[str, Any]) -> list[Output]:
    """Run a cell; its outputs are what it prints, its last value and its figures."""
    from matplotlib import pyplot

    tree = ast.parse(code, where)
    last = tree.body[-1] if tree.body else None
    expression = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
    if expression:
        tree.body.pop()
    printed = io.StringIO()
    outputs: list[Output] = []
    with redirect_stdout(printed):
        exec(compile(tree, where, "exec"), namespace)
        value = eval(compile(expression, where, "eval"), namespace) if expression else None
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None and not pyplot.get_fignums():
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append(
            {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}
        )
    for number in pyplot.get_fignums():
        picture = io.BytesIO()
        pyplot.figure(number).savefig(picture, format="png", dpi=80, metadata={"Software": None})
        shown = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown})
    pyplot.close("all")
    return outputs


def write_outputs(path: Path, outputs: list[list[Output]]) -> None:
    """Write the outputs of a run into the notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [each for each in notebook["cells"] if each["cell_type"] == "code"]
    for cell, found in zip(cells, outputs, strict=True):
        cell["outputs"] = found
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    notebook_path = Path(sys.argv[1]).resolve()
    os.chdir(sys.argv[2])
    results = run_notebook(notebook_path)
    print(json.dumps(results))
    if "--write" in sys.argv:
        write_outputs(notebook_path, results)
