"""The report's page in a real browser: it opens from disk, and everything on it works."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_cases import (
    ATTACK,
    DPO,
    ODD,
    RUN_NAME,
    attack,
    key,
    name,
    policy_logps,
    put,
    put_pairs,
    put_run,
    put_scores,
    ref_logps,
)
from report_reader import Reader

from offpref.stores.report.html import write_report
from offpref.stores.report.settings import ReportSettings
from offpref.stores.store import Store

MINUS = "\u2212"


FOCUS = """() => {
  const at = document.activeElement, inside = at.matches(".segments input, .chip input");
  const ring = getComputedStyle(inside ? at.closest("label") : at);
  return [at.id || at.className || at.tagName, ring.outlineStyle, parseFloat(ring.outlineWidth)];
}"""

Open = Callable[..., Reader]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the store that attacks."""
    folder = tmp_path_factory.mktemp("attacked")
    store = Store.create(folder / "store")
    attack(store)
    write_report(store, folder / "report.html", ReportSettings(title=ATTACK))
    return folder / "report.html"


@pytest.fixture
def reader(open_page: Open, attacked: Path) -> Reader:
    """The report of the store that attacks, opened."""
    return open_page(attacked)


# It opens.


def test_page_opens_and_shows_texts_that_attack_as_texts(reader: Reader) -> None:
    assert reader.page.evaluate("document.documentElement.dataset.state") == "ready"
    assert reader.texts("#title") == [ATTACK]
    assert RUN_NAME in reader.texts("#runs-body td:first-child")
    assert reader.page.locator("img, #runs b[onmouseover], #pairs a, article script").count() == 0

    reader.page.locator("#search").fill("window.hacked=2")
    assert len(reader.column("Prompt")) == 10  # all have it in a column of their source
    reader.page.locator("#search").fill("evil")
    reader.page.locator("#pair-table tbody tr").click()
    reader.wait_for(0)

    assert reader.texts("#pair .prompt") == [ATTACK]
    (meta,) = reader.texts("#pair pre")
    assert f'"{ATTACK}"' in meta.replace('\\"', '"')


def test_texts_without_tokens_show_what_would_act(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    texts = {(1, 1): {"prompt": ATTACK, "completion": ODD}, (1, 2): {"completion": ATTACK}}
    put_pairs(store, [1], texts)
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())

    reader = open_page(tmp_path / "report.html", width=390)

    shown = ODD.replace("\0", "\u2400").replace("\u202e", "\u27e8U+202E\u27e9")
    shown = shown.replace("\u202c", "\u27e8U+202C\u27e9")
    assert reader.texts("article .plain") == [shown.strip(), ATTACK]
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
    assert "offpref score STORE" in reader.texts("#pair .note")[0]


def test_names_of_everything_else_are_texts_too(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    names = {"pair_set": ATTACK, "split": ATTACK, "source_file": ATTACK}
    put_pairs(store, [1], **names)
    put_pairs(store, [2])
    put_run(store, DPO, "dpo")
    step = {"run_id": DPO, "step": 1, "split": ATTACK, "metrics": [(ATTACK, 1.0)]}
    put(store, "steps", [step], DPO.hex())
    example = {"run_id": DPO, "step": 1, "split": ATTACK, "pair_key": key(1), "loss": 0.5}
    put(store, "examples", [example, example | {"pair_key": key(2), "loss": 1}], DPO.hex())
    evaluation = {"name": ATTACK, "pair_set": ATTACK, "split": ATTACK, "reverse_kl": 1.0,
                  "rewards": [(ATTACK, 0.5)], "num_prompts": 1, "num_samples": 1}  # fmt: skip
    put(store, "evaluations", [evaluation])
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())

    reader = open_page(tmp_path / "report.html")

    assert ATTACK in reader.hover_point("frontier-chart", trace=1)
    assert reader.texts("#frontier-chart .ytitle") == [f"reward: {ATTACK}, better \u2191"]
    reader.choose("Metric", ATTACK)
    assert reader.texts("#curves-chart .ytitle") == [ATTACK]
    reader.choose("Split", ATTACK)
    reader.choose("Pair set", ATTACK)
    assert reader.column("Split") == [ATTACK]
    assert ATTACK in reader.texts("#pair .meta")[0]
    assert reader.page.locator("main img, main b[onmouseover], main script").count() == 0


def test_page_of_an_empty_store_says_what_would_fill_it(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    write_report(store, tmp_path / "report.html", ReportSettings())
    reader = open_page(tmp_path / "report.html")
    commands = [each.split()[1] for each in reader.texts("main code") if "offpref" in each]
    assert commands == ["train", "train", "train", "train", "add"]


def test_page_of_a_store_without_runs_colours_the_references_log_probs(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    put_pairs(store, [9, 20, 24])
    put_scores(store, [9, 20, 24])
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())

    reader = open_page(tmp_path / "report.html")

    assert reader.texts("#pair .segments label:has(:checked)") == ["Log-prob"]
    assert reader.page.locator("#pair .segments input:disabled").count() == 3
    assert reader.column("Log-prob, chosen")[1] == f"{MINUS}{abs(sum(ref_logps(20, 1))):.2f}"
    rejected = [f"{MINUS}{abs(sum(ref_logps(number, 2))):.2f}" for number in (24, 20)]
    for expected in (rejected, rejected[::-1]):  # the unpaired one stays last
        reader.page.locator("[data-sort=sum_rejected]").click()
        assert reader.column("Log-prob, rejected") == [*expected, "\u2013"]


# The table.


def test_headings_sort_by_mouse_and_keyboard(reader: Reader) -> None:
    heading = reader.page.locator("#pair-table th button", has_text="Margin")
    sort = "document.querySelector('#pair-table th[aria-sort]').getAttribute('aria-sort')"
    margins = [(number - 4) * 2 + 1 for number in range(9)]
    spelled = [f"{each:.3f}".replace("-", MINUS) for each in margins]
    # At first the worst pairs; the unpaired one is last either way.
    assert reader.column("Margin") == [*spelled, "\u2013"]
    assert reader.page.evaluate(sort) == "ascending"

    heading.click()
    assert reader.column("Margin") == [*reversed(spelled), "\u2013"]
    assert reader.page.evaluate(sort) == "descending"

    reader.page.keyboard.press("Enter")  # the heading has the focus still
    assert reader.column("Margin") == [*spelled, "\u2013"]
    reader.page.locator("#pair-table th button", has_text="Prompt").focus()
    reader.page.keyboard.press("Space")
    assert reader.column("Prompt")[1:3] == ["prompt 1", "prompt 2"]
    assert reader.page.locator("#pair-table th[aria-sort]").count() == 1


def test_search_and_filters_find_pairs(reader: Reader) -> None:
    page = reader.page
    page.keyboard.press("/")
    page.keyboard.type("REJECTED 3")  # of any case
    assert reader.column("Prompt") == ["prompt 3"]
    page.keyboard.type("nothing")
    assert reader.texts("#pages [role=status]") == ["No pair matches."]

    page.locator("#search").fill("")
    reader.choose("Pairs", "unpaired")
    assert reader.column("Prompt") == ["prompt 9"]
    reader.choose("Pairs", "wrong")
    assert reader.column("Prompt") == [ATTACK, "prompt 1", "prompt 2", "prompt 3"]
    reader.choose("Split", "eval")
    assert reader.column("Prompt") == ["prompt 1", "prompt 3"]


def test_keys_walk_through_the_pairs(reader: Reader) -> None:
    page = reader.page
    assert reader.pair() == name(0)[:8]

    for pressed, expected in (("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(pressed)
        reader.wait_for(expected)
    page.locator("#pair-table tr[aria-selected=true] button").focus()
    page.keyboard.press("ArrowDown")
    reader.wait_for(2)
    assert page.evaluate("document.activeElement.closest('tr').dataset.pair") == "2"

    page.keyboard.press("/")
    page.keyboard.type("j")  # a letter of the search, no command
    assert reader.pair() == name(2)[:8]


def test_long_tables_have_pages_that_keys_turn(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    put_pairs(store, range(120))
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings(max_pairs=110))

    reader = open_page(tmp_path / "report.html")

    assert "110 of 120 pairs shown" in reader.texts("#pairs-body > .note")[0]
    assert len(reader.column("Prompt")) == 50
    reader.page.get_by_role("button", name="Next page").click()
    reader.page.get_by_role("button", name="Next page").click()
    assert reader.texts("#pages [role=status]") == ["101 to 110 of 110 pairs"]
    assert reader.page.get_by_role("button", name="Next page").is_disabled()
    reader.page.keyboard.press("j")
    assert reader.texts("#pages [role=status]") == ["1 to 50 of 110 pairs"]


# Tokens.


def colours(reader: Reader, side: str) -> list[str]:
    """Of each token where its colour leans to, and nothing where there is none."""
    script = "all => all.map(each => getComputedStyle(each).backgroundColor)"
    found = reader.page.locator(f"[data-side={side}] .token").evaluate_all(script)
    hues = []
    for colour in found:
        red, _, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
        hues.append("" if alpha and alpha[0] < 0.02 else "high" if red > blue else "low")
    return hues


def tip(reader: Reader) -> dict[str, str]:
    """The tip that is shown, by name."""
    assert reader.page.locator("#tip").is_visible()
    return dict(zip(reader.texts("#tip dt"), reader.texts("#tip dd"), strict=True))


def number(text: str) -> float:
    return float(text.replace(MINUS, "-"))


def test_tokens_are_coloured_by_log_ratio_with_values_on_hover(reader: Reader) -> None:
    reader.page.keyboard.press("j")
    reader.wait_for(1)
    ratios = [a - b for a, b in zip(policy_logps(1, 1, 3), ref_logps(1, 1), strict=True)]

    assert colours(reader, "chosen") == ["high", "low", "high", "low", "high"]
    for place in (0, 3):
        reader.page.locator("[data-side=chosen] .token").nth(place).hover()
        shown = tip(reader)
        assert number(shown["Log-ratio"]) == pytest.approx(ratios[place], rel=2e-3)
        assert number(shown["Log-prob, policy"]) == pytest.approx(
            policy_logps(1, 1, 3)[place], rel=2e-3
        )
        assert number(shown["Log-prob, reference"]) == pytest.approx(
            ref_logps(1, 1)[place], rel=2e-3
        )
        assert number(shown["KL"]) == pytest.approx(0.0625 * place, abs=1e-4)
        assert number(shown["Entropy"]) == pytest.approx(0.5 + place, rel=2e-3)
    reader.page.mouse.move(0, 0)
    assert not reader.page.locator("#tip").is_visible()


def test_tokens_that_do_not_count_are_grey_and_say_so(open_page: Open, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    attack(store)
    put(store, "masks", [
        {"run_id": DPO, "pair_key": key(1), "sequence_key": key(1, 1), "starts": [1], "ends": [3]},
        {"run_id": DPO, "pair_key": key(1), "sequence_key": key(1, 2), "starts": [], "ends": []},
    ], DPO.hex())  # fmt: skip
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())
    reader = open_page(tmp_path / "report.html")
    assert reader.page.locator("#pair .legend .uncounted").count() == 0  # a pair without a mask
    reader.page.keyboard.press("j")
    reader.wait_for(1)

    titles = reader.page.locator("[data-side=chosen] .token").evaluate_all(
        "all => all.map(each => each.title)"
    )
    words = "does not count: left out by the run's mask"
    assert titles == [words, "", "", words, words]
    assert reader.page.locator("[data-side=rejected] .token:not(.uncounted)").count() == 0
    assert words in reader.texts("#pair .legend")[0]
    grey, *coloured = reader.page.locator("[data-side=chosen] .token").evaluate_all(
        "all => all.slice(0, 3).map(each => getComputedStyle(each).backgroundColor)"
    )
    assert "rgba" not in grey
    assert all("rgba" in each for each in coloured)
    reader.page.locator("[data-side=chosen] .token").first.hover()
    assert words in reader.page.locator("#tip").inner_text()


def test_a_character_in_halves_is_shown_where_it_is_complete(reader: Reader) -> None:
    reader.page.keyboard.press("j")
    reader.wait_for(1)
    shown = [each.text_content() for each in reader.page.locator("[data-side=chosen] .token").all()]
    assert shown == ["good", "e2 9c", "\u2713", "\u21b5\n", "</s>"]
    assert reader.texts("[data-side=chosen] .token .mark") == ["e2 9c", "</s>"]
    rejected = reader.page.locator("[data-side=rejected] .token").all_text_contents()
    assert rejected == ["<img src=x>", " bad", "</s>"]


def test_measures_switch_by_keyboard_and_tokens_are_walked_with_arrows(reader: Reader) -> None:
    page = reader.page
    page.locator(".segments input[value=logratios]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.segments input[value=forward_kl]')?.checked")
    assert page.evaluate("document.activeElement.value") == "forward_kl"
    assert colours(reader, "chosen") == ["", "high", "high", "high", "high"]
    assert "KL (nats)" in reader.texts("#pair .legend")[0]

    page.locator("[data-side=chosen] .token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert number(tip(reader)["KL"]) == pytest.approx(0.125, abs=1e-4)
    assert page.evaluate("document.activeElement.dataset.place") == "2"
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_run_without_reference_is_coloured_by_log_prob(reader: Reader) -> None:
    reader.choose("Measured by", "1")
    reader.page.keyboard.press("j")
    reader.wait_for(1)
    assert reader.texts("#pair .segments label:has(:checked)") == ["Entropy"]
    assert reader.page.locator(".segments input[value=logratios]").is_disabled()
    reader.page.locator(".segments label", has_text="Log-prob").click()
    reader.page.locator("[data-side=rejected] .token").nth(1).hover()
    assert number(tip(reader)["Log-prob, policy"]) == pytest.approx(
        policy_logps(1, 2, 2)[1], rel=2e-3
    )


def test_unpaired_and_unmeasured_pairs_say_so(reader: Reader) -> None:
    reader.choose("Measured by", "1")
    reader.page.locator("#search").fill("chosen 9")
    reader.page.locator("#pair-table tbody tr").click()
    reader.wait_for(9)
    assert "has no rejected completion" in reader.texts("[data-side=rejected]")[0]
    assert "--log-tokens all" in reader.texts("#pair .note")[0]
    assert reader.texts("[data-side=chosen] .plain") == ["chosen 9"]


# Charts.


def test_curves_are_overlaid_and_switched_and_hover_tells_the_run(reader: Reader) -> None:
    drawn = "document.getElementById('curves-chart').data.length"
    assert reader.page.evaluate(drawn) == 4  # two runs, training and held out
    boxes = reader.page.locator("#curves-body input[data-run='1']")

    boxes.focus()
    reader.page.keyboard.press("Space")
    assert reader.page.evaluate(drawn) == 2
    assert not reader.page.locator("#distributions-body input[data-run='1']").is_checked()
    reader.choose("Metric", "rewards/accuracies")
    assert reader.page.evaluate("document.getElementById('curves-chart').data[0].y") == [0.75] * 2

    hover = reader.hover_point("curves-chart", trace=0)
    assert f"{RUN_NAME}, " in hover
    assert "step 1" in hover


def test_frontier_marks_the_best_and_hover_tells_the_settings(reader: Reader) -> None:
    assert "simpo" in reader.texts("#frontier-body .note")[0]  # it has no KL
    reader.choose("Across", "loss")
    reader.choose("Up", "reward_margins")
    assert len(reader.texts("#frontier-body tbody tr")) == 2

    hover = reader.hover_point("frontier-chart", trace=1)
    assert "beta: 0.1" in hover
    assert "(frontier)" in hover


def test_frontier_is_made_of_the_points_that_no_other_beats(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    points = {"near": (1.0, 0.5), "far": (2.0, 0.75), "beaten": (3.0, 0.625), "worse": (1.0, 0.25)}
    rows = [
        {"evaluation_id": bytes([place]) * 16, "name": each, "reverse_kl": kl,
         "rewards": [("helpful", reward)]}
        for place, (each, (kl, reward)) in enumerate(points.items())
    ]  # fmt: skip
    put(store, "evaluations", rows)
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())

    reader = open_page(tmp_path / "report.html")

    marks = zip(
        reader.texts("#frontier-body td:nth-child(1)"),
        reader.texts("#frontier-body td:nth-child(4)"),
        strict=True,
    )
    assert {each for each, mark in marks if mark == "yes"} == {"near", "far"}
    line = "document.getElementById('frontier-chart').data[0]"
    assert reader.page.evaluate(f"[{line}.x, {line}.y]") == [[1, 2], [0.5, 0.75]]


def test_frontier_ranks_what_was_measured_alike_and_says_what_was_not(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    """At a low temperature a policy has more reward at less KL, and beats no other one by that."""
    points = {"warm": (1.0, 3.0, 0.5), "worse": (1.0, 4.0, 0.25), "cold": (0.1, 2.0, 0.75)}
    put(store, "evaluations", [
        {"evaluation_id": bytes([place]) * 16, "name": each, "reverse_kl": kl,
         "rewards": [("helpful", reward)], "settings": json.dumps({"temperature": temperature})}
        for place, (each, (temperature, kl, reward)) in enumerate(points.items())
    ])  # fmt: skip
    store.refresh()
    write_report(store, tmp_path / "report.html", ReportSettings())

    reader = open_page(tmp_path / "report.html")

    names = reader.texts("#frontier-body td:nth-child(1)")
    marks = reader.texts("#frontier-body td:nth-child(4)")
    found = {each for each, mark in zip(names, marks, strict=True) if mark == "yes"}
    assert found == {"warm", "cold"}
    note = reader.texts("#frontier-body .note")[0]
    assert "warm, worse (temperature 1.0); cold (temperature 0.1)" in note
    line = "document.getElementById('frontier-chart').data[0]"
    assert reader.page.evaluate(f"{line}.x") == [3, None, 2]  # a gap between the two groups


def test_distributions_switch_measure_and_pairs(reader: Reader) -> None:
    figures = "#distributions-body .figures td:nth-child(3)"
    reader.page.locator("#distributions-body summary").click()
    assert [number(each) for each in reader.texts(figures)] == [1, 0]
    reader.choose("Measure", "rejected_forward_kl")
    assert [number(each) for each in reader.texts(figures)] == [1.5]
    assert "all values are equal" in reader.texts("#distributions-body .note")[0]


# Looks.


def test_theme_follows_the_system_and_the_button(open_page: Open, attacked: Path) -> None:
    theme = "document.documentElement.dataset.theme"
    reader = open_page(attacked, color_scheme="dark", reduced_motion="reduce")
    assert reader.page.evaluate(theme) == "dark"
    assert (
        reader.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    )
    reader.page.get_by_role("button", name="Use the light theme").click()
    assert reader.page.evaluate(theme) == "light"
    for _ in range(20):  # the browser writes what it remembers some time after it is told
        reader.page.reload()
        reader.page.wait_for_selector("html[data-state=ready]")
        del reader.requests[1:]
        if reader.page.evaluate(theme) == "light":
            break
        reader.page.wait_for_timeout(100)
    assert reader.page.evaluate(theme) == "light"  # remembered


def test_page_fits_a_phone(open_page: Open, attacked: Path) -> None:
    reader = open_page(attacked, width=390, is_mobile=True, has_touch=True)
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 390


def test_every_control_is_reached_by_tab_and_shows_it(reader: Reader) -> None:
    reached = []
    for _ in range(80):
        reader.page.keyboard.press("Tab")
        what, style, width = reader.page.evaluate(FOCUS)
        if what == "BODY" or (reached and what == "skip"):
            break
        assert (what, style, width >= 1) == (what, "solid", True)
        reached.append(what)
    assert {"theme", "search", "open", "next", "token", "SELECT"} <= set(reached)
    assert reached.count("open") == 1  # one stop: arrows move inside
    assert reached.count("token") == 2
