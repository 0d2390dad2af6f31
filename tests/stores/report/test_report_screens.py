"""The report's page at three widths in both themes, by keyboard, and as axe-core sees it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_cases import Page, name, policy_logps, ref_logps
from report_reader import Reader
from report_results import NAMES, put_evaluation

from offpref.stores.query.catalog import Catalog
from offpref.stores.report.html import read_page, write_report
from offpref.stores.report.settings import ReportSettings
from offpref.stores.store import Store

Open = Callable[..., Reader]

MINUS, DASH = "\u2212", "\u2013"
FITS = "(box => box.scrollWidth <= box.clientWidth)(document.getElementById('run-table'))"
BARRIERS = """async () => {
  const { violations } = await axe.run({ resultTypes: ["violations"] });
  return violations.map(({ id, nodes }) => [id, nodes.map(({ target }) => target)]);
}"""
BOXES = """() => [...document.querySelectorAll("#frontier-chart .annotation-text")].map(each => {
  const { left, right, top, bottom } = each.getBoundingClientRect();
  return { text: each.textContent, left, right, top, bottom };
})"""
POINTS = """() => [...document.querySelectorAll("#frontier-chart .point")].map(each => {
  const { left, right, top, bottom } = each.getBoundingClientRect();
  return { text: "", left: left + 3, right: right - 3, top: top + 3, bottom: bottom - 3 };
})"""


@pytest.fixture(scope="module")
def path(results: Store) -> Path:
    """The report of a store of runs with results."""
    page = results.path.parent / "report.html"
    write_report(results, page, ReportSettings())
    return page


@pytest.fixture(scope="module")
def reader(open_shared: Open, path: Path) -> Reader:
    """The report at the width that shows all of a run."""
    return open_shared(path, width=1400)


def column(reader: Reader, heading: str) -> list[str]:
    """A column of the table of runs, as it is seen."""
    headings = [
        each.split("\u00a0\u2191")[0].split("\u00a0\u2193")[0].replace("\u00a0", " ")
        for each in reader.texts("#run-table th")
    ]
    place = headings.index(heading) + 1
    return reader.texts(f"#run-table tr[data-run-row] td:nth-child({place})")


def seen_headings(reader: Reader) -> list[str]:
    seen = reader.page.locator("#run-table th:visible").all_text_contents()
    return [re.sub("\u00a0[\u2191\u2193]$", "", each).replace("\u00a0", " ") for each in seen]


@pytest.mark.parametrize("width", [390, 1024, 1400])
def test_page_fits_and_has_no_barrier_in_both_themes(
    open_page: Open, path: Path, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    reader = open_page(path, width=width, color_scheme="light")
    page = reader.page

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(FITS)
    if width == 390:
        assert seen_headings(reader) == ["Run", "Status", "Accuracy, held out", "KL"]
    elif width == 1400:
        assert seen_headings(reader) == [
            "Run", "Status", "loss_type", "beta", "learning_rate", "Accuracy, held out",
            "Loss, held out", "KL", "Reward, helpful", "Reward, brief", "Steps", "Started (UTC)",
        ]  # fmt: skip

    page.locator("#run-table .open-run", has_text="beta-2").click()
    opened = [each.replace("\u00a0", " ") for each in reader.texts("#run-table .details dt")]
    assert {"Loss, held out", "Reward, helpful", "Pair set", "Rank", "Id"} <= set(opened)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    assert page.evaluate(BARRIERS) == []
    page.emulate_media(color_scheme="dark")
    page.locator("#pair-view").select_option("change")  # the other view of tokens, too
    page.wait_for_selector("html[data-theme=dark] .change-column")
    assert page.evaluate(BARRIERS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_runs_are_sorted_by_keyboard_numbers_as_numbers_and_dashes_last(reader: Reader) -> None:
    page = reader.page
    sorts = "[...document.querySelectorAll('#run-table th[aria-sort]')].map(e => e.ariaSort)"
    # At first the highest accuracy; what has none is last.
    assert column(reader, "Run")[:2] == ["elsewhere", "beta-2"]
    assert column(reader, "Accuracy, held out")[0].startswith("1.000")
    assert column(reader, "Accuracy, held out")[-2:] == [DASH, DASH]
    assert page.evaluate(sorts) == ["descending"]

    page.locator("#run-table button", has_text="beta").first.focus()
    page.keyboard.press("Enter")
    assert column(reader, "beta") == ["0.5", "1", "2", "2", "10", DASH]
    page.keyboard.press("Space")  # the heading has the focus still
    assert column(reader, "beta") == ["10", "2", "2", "1", "0.5", DASH]
    assert page.evaluate(sorts) == ["descending"]
    page.locator("#run-table button", has_text="learning").focus()
    page.keyboard.press("Enter")
    assert column(reader, "learning_rate")[:4] == ["5e-06", "2e-05", "0.0001", DASH]
    page.locator("#run-table button", has_text="KL").focus()
    page.keyboard.press("Space")
    kls = [float(each.split("\u00b1")[0]) for each in column(reader, "KL") if each != DASH]
    assert kls == sorted(kls)
    assert column(reader, "KL")[-1] == DASH

    page.locator("#run-table .open-run").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#run-table .details").count() == 1
    assert page.evaluate("document.activeElement.ariaExpanded") == "true"
    page.keyboard.press("Enter")
    assert page.locator("#run-table .details").count() == 0


def test_page_says_which_run_is_best_and_which_are_left_out(reader: Reader) -> None:
    (left_out,) = reader.texts("#left-out")
    assert "elsewhere@060606060606 (a dead attempt, interrupted: a later run" in left_out
    assert "gone (put away since " in left_out
    (apart,) = reader.texts("#not-ranked")
    assert "fresh (no held-out pairs were measured)" in apart
    assert "ties (all held-out margins are ties)" in apart
    # The first section is the table; two groups of pairs have no best run in common.
    assert reader.page.evaluate("document.querySelector('main table').closest('[id]').id") == (
        "run-table"
    )
    assert reader.texts("#best") == []


def test_frontier_begins_with_what_was_evaluated_and_the_reference_at_0(reader: Reader) -> None:
    assert reader.texts("#frontier-chart .ytitle") == ["reward: helpful, better \u2191"]
    rows = dict(
        zip(reader.texts("#frontier-body td:nth-child(1)"),
            reader.texts("#frontier-body td:nth-child(2)"), strict=True)
    )  # fmt: skip
    assert rows["base"] == "0"
    assert rows["beta-10"] == "3 \u00b1 0.13"
    assert "base (reference)" in [each["text"] for each in reader.page.evaluate(BOXES)]
    colours = reader.page.evaluate("document.getElementById('frontier-chart').data[1].marker")
    swatch = reader.page.locator("#run-table tr[data-run-row='1'] .swatch polygon")
    assert swatch.get_attribute("fill") in colours["line"]["color"]  # one colour per run


def apart(one: dict[str, float], other: dict[str, float]) -> bool:
    return (
        one["right"] <= other["left"] or other["right"] <= one["left"]
        or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
    )  # fmt: skip


def test_names_on_the_frontier_do_not_overlap_at_any_width(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    for number in range(12):  # four heaps of three
        reward, kl = 0.5 + number % 4 / 10 + number / 1000, 1.0 + number % 4 + number / 500
        put_evaluation(store, number, f"policy-with-a-name-{number}", reward, kl)
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())
    reader = open_page(tmp_path / "report.html", width=1400)
    page = reader.page

    found = {}
    for width, num_names in ((1400, 12), (390, 8)):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            "width => document.getElementById('frontier-chart')._fullLayout.width < width"
            " && document.querySelectorAll('#frontier-chart .annotation-text').length",
            arg=width,
        )
        page.wait_for_timeout(200)
        names, points = page.evaluate(BOXES), page.evaluate(POINTS)
        assert len(points) == 12
        assert len(names) >= num_names
        for place, one in enumerate(names):
            assert all(apart(one, other) for other in [*names[place + 1 :], *points]), one
        found[width] = names
    page.locator("#theme").click()  # drawn again
    assert page.evaluate(BOXES) == found[390]
    assert found[390] != found[1400]


def test_pairs_that_every_run_gets_wrong_are_those_of_label_noise(
    reader: Reader, results: Store, path: Path
) -> None:
    with Catalog(results) as catalog:
        noisy = {row["pair_key"] for row in catalog.select("label_noise").to_pylist()}

    reader.choose("Pairs", "always wrong")

    places = reader.page.locator("#pair-table tr[data-pair]").evaluate_all(
        "rows => rows.map(row => Number(row.dataset.pair))"
    )
    keys = Page(path).json("pairs")["pairs"]["pair_key"]
    assert {keys[place] for place in places} == noisy == {name(1)}
    reader.choose("Pairs", "")


def number(text: str) -> float:
    return float(text.replace(MINUS, "-"))


def test_tokens_before_and_after_stand_side_by_side_with_their_difference(reader: Reader) -> None:
    page = reader.page
    page.locator("#search").fill("prompt 3")
    page.locator("#pair-table tbody tr").click()
    reader.wait_for(3)
    page.locator("#pair-view").select_option("change")
    page.wait_for_selector(".change-column")

    for run, step in (("beta-2", 1), ("beta-10", 2)):
        page.locator("#pair-run").focus()
        page.locator("#pair-run").select_option(str(NAMES.index(run)))
        page.wait_for_function(
            "run => document.getElementById('pair-source').value === run"
            " && document.activeElement.id === 'pair-run'", arg=str(NAMES.index(run)),
        )  # fmt: skip
        before, after = ref_logps(3, 1), policy_logps(3, 1, step)
        sums = [number(each.split()[0]) for each in reader.texts("[data-side=chosen] .label b")]
        assert sums == pytest.approx([sum(before), sum(after), sum(after) - sum(before)], abs=0.006)
        figures = [reader.texts(f"[data-side=chosen] .figures td:nth-child({place})")
                   for place in (2, 3, 4)]  # fmt: skip
        shown = [[number(each) for each in numbers] for numbers in figures]
        assert shown[0] == pytest.approx(before, abs=2e-3)
        assert shown[1] == pytest.approx(after, abs=2e-3)
        assert shown[2] == pytest.approx([b - a for a, b in zip(before, after, strict=True)],
                                         abs=2e-3)  # fmt: skip
    heights = page.locator("[data-side=chosen] .change-column").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().top)"
    )
    assert len(heights) == 3
    assert len(set(heights)) == 1  # side by side


# A page that is written again.


def written(store: Store, path: Path, title: str, interval_seconds: float | None) -> None:
    page = read_page(store, path, ReportSettings(title=title))
    times = {"interval_seconds": interval_seconds, "written_at": "2026-01-01T00:00:00+00:00"}
    path.write_bytes(page.content(times if interval_seconds else None))


def test_watched_page_loads_itself_anew_and_keeps_what_a_reader_chose(
    open_page: Open, results: Store, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    written(results, path, "first", 0.5)
    reader = open_page(path, reduced_motion="reduce")
    page = reader.page
    page.locator("#pause").click()
    assert re.match("Written \\d+ days ago", reader.texts("#watched")[0])
    page.locator("#run-table button", has_text="beta").first.click()
    page.locator("#frontier-body input[data-run='1']").uncheck()
    reader.choose("Pairs", "always wrong")
    page.locator("#run-table .open-run").nth(1).click()
    page.locator("#pair-view").select_option("change")
    page.locator("#curves-title").scroll_into_view_if_needed()
    page.evaluate("window.isSame = true")
    written(results, path, "second", 0.5)
    page.wait_for_timeout(1400)
    assert page.evaluate("window.isSame")  # stopped
    chosen = (column(reader, "Run"), page.evaluate("scrollY"))
    press = "document.getElementById('pause').click()"  # without scrolling there
    page.evaluate(press)
    page.wait_for_selector("#title:text-is('second')", timeout=10_000)
    page.wait_for_selector("html[data-state=ready]")
    page.evaluate(press)

    assert (column(reader, "Run"), page.evaluate("scrollY")) == chosen
    assert page.locator("#run-table .details").count() == 1
    assert not page.locator("#distributions-body input[data-run='1']").is_checked()
    assert len(reader.column("Prompt")) == 1
    assert page.locator("#pair-view").input_value() == "change"
    del reader.requests[1:]


def test_page_that_is_not_watched_or_not_from_disk_stays(
    reader: Reader, results: Store, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    written(results, path, "watched", 0.5)
    assert not reader.page.locator("#watched").is_visible()  # nor asks it for anything: conftest
    other = reader.page.context.new_page()
    other.route("http://report.test/", lambda route: route.fulfill(path=path))
    other.goto("http://report.test/")
    other.wait_for_selector("html[data-state=ready]")
    other.evaluate("window.isSame = true")
    other.wait_for_timeout(1400)
    assert other.locator("#watched").is_visible()
    assert other.locator("#pause").count() == 0
    assert other.evaluate("window.isSame")
    other.close()
