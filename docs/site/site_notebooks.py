"""A notebook as a page: its texts, its code and what the code has shown."""

import json
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown; pictures are in the page itself."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("\n".join(_cell(each)) for each in cells)


def code_cells(path: Path) -> list[str]:
    """Return the code of a notebook, cell by cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(each["source"]) for each in cells if each["cell_type"] == "code"]


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text, ""]
    lines = ["```python", text, "```", ""]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            lines += [
                f'<img alt="what the cell above plots" src="data:image/png;base64,{picture}">',
                "",
            ]
        else:
            shown = "".join(output.get("text", data.get("text/plain", ())))
            lines += ["```text", shown.rstrip(), "```", ""]
    return lines
