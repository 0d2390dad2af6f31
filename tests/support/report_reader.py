"""A reader of the report's page in a browser: what is seen, and what the browser says."""

from pathlib import Path
from typing import Any

from report_cases import name

POINT = """([name, number, point]) => {
  const box = document.getElementById(name), { _size: size, xaxis, yaxis } = box._fullLayout;
  const edge = box.getBoundingClientRect(), trace = box.data[number];
  return [edge.left + size.l + xaxis.d2p(trace.x[point]),
    edge.top + size.t + yaxis.d2p(trace.y[point])];
}"""


class Reader:
    """A reader of a page: what is seen, and what the browser complained of."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-state]")

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match."""
        return [each.strip() for each in self.page.locator(selector).all_text_contents()]

    def column(self, heading: str) -> list[str]:
        """A column of the table of pairs."""
        headings = [each.rstrip("\u2191\u2193\u00a0") for each in self.texts("#pair-table th")]
        return self.texts(f"#pair-table td:nth-child({headings.index(heading) + 1})")

    def wait_for(self, pair: int) -> None:
        """Wait until a pair is shown: its tokens are unpacked first."""
        key = name(pair)[:8]
        self.page.wait_for_selector(f"#pair-title:text-is('Pair {key}')")

    def choose(self, control: str, value: str) -> None:
        """Choose a value of a list."""
        self.page.get_by_role("combobox", name=control, exact=True).last.select_option(value)

    def hover_point(self, chart: str, trace: int, point: int = 0) -> str:
        """Move the mouse to a point of a chart and return what is told."""
        self.page.locator(f"#{chart}").scroll_into_view_if_needed()
        place = self.page.evaluate(POINT, [chart, trace, point])
        self.page.mouse.move(*place)
        self.page.wait_for_selector(f"#{chart} .hovertext")
        return self.texts(f"#{chart} .hovertext")[0]

    def pair(self) -> str:
        """The key of the pair that is shown, as far as its title goes."""
        return self.texts("#pair-title")[0].removeprefix("Pair ")
