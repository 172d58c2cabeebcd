from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from components.shared import report as report_module
from components.shared.errors import PlumblineError
from components.shared.report import (
    ABSENT,
    Panel,
    Section,
    Series,
    badge,
    details,
    figures,
    format_confidence,
    format_interval,
    format_number,
    join,
    note,
    paragraph,
    render_page,
    svg_bars,
    svg_histogram,
    svg_line,
    svg_panels,
    table,
)

XSS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "</svg><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">x</a>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    "<math><mtext></mtext><style><img src onerror=alert(1)></style></math>",
    "{{ 7 * 7 }}{% raw %}<b>x</b>{% endraw %}",
    '<meta http-equiv="refresh" content="0;url=https://example.org">',
    "&lt;script&gt;alert(1)&lt;/script&gt;&#60;b&#62;",
    "<style>@import 'https://example.org/x.css'</style>",
    "<form action=https://example.org><button formaction=javascript:alert(1)>x",
]

TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title style body header h1 h2 h3 h4 span p nav a main section footer div table "
        "caption thead tbody tr th td dl dt dd small strong code pre ul li details summary figure svg defs g "
        "path use text rect clippath tspan",
    )
)


class _Page(HTMLParser):
    """Tags, attributes and text of a page as a browser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def assert_harmless(html: str) -> _Page:
    """No tag that we do not write ourselves, no event handler, nothing loaded, no link out of the page."""
    page = _Page(html)
    assert page.tags <= TAGS, page.tags - TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in {"src", "srcdoc", "action", "formaction", "background", "srcset", "ping"}, (tag, name)
        if name.endswith("href"):
            assert (value or "").startswith("#"), value
    return page


def _page_with(text: str) -> str:
    charts = [
        svg_line([Series(text, [1, 2], [1.0, 2.0])], title=text, x_label=text, y_label=text, references={text: 1.5}),
        svg_bars(
            [text, "b"], [0.4, 0.6], title=text, value_label=text, limits=[0.5, 0.5], limit_name=text, description=text
        ),
        svg_histogram({text: [1.0, 2.0, 2.0]}, title=text, x_label=text),
    ]
    content = [
        text,
        paragraph(text),
        note(text, tone="warn"),
        table([text], [[text], [Markup("<strong>{}</strong>").format(text)]], caption=text),
        figures([(text, text, text)]),
        badge(text),
        details(text, text),
        *charts,
    ]
    return render_page(text, [Section(text, join(content)), Section("plain", text)], subtitle=text, badge=text)


@pytest.mark.parametrize("text", XSS)
def test_untrusted_text_is_shown_as_text_wherever_it_appears(text: str) -> None:
    page = assert_harmless(_page_with(text))
    assert sum(text in shown for shown in page.text) >= 10


@given(st.text(max_size=40))
@settings(max_examples=25, deadline=None)
def test_no_text_at_all_becomes_a_tag_or_an_attribute(text: str) -> None:
    html = render_page(text, [Section(text, join([table([text], [[text]]), figures([(text, text)]), note(text)]))])
    assert_harmless(html)


def test_the_page_forbids_scripts_and_loads_nothing() -> None:
    html = render_page("Title", [Section("A", paragraph("text"))])
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_sections_are_linked_in_their_order() -> None:
    html = render_page("Title", [Section(name, "x") for name in "abcd"])
    assert re.findall(r'href="#(section-\d)">(\w)', html) == [
        (f"section-{i}", n) for i, n in enumerate("abcd", start=1)
    ]
    assert all(f'id="section-{i}"' in html for i in range(1, 5))


def _chart() -> Markup:
    panels = [
        Panel(
            "reward (sd)",
            [Series("a", [0, 1, 2], [0.0, None, 1.0], [0, 0, 0], [1, 1, 2], markers=True)],
            {"target": 0.5},
        ),
        Panel("KL (nats)", [Series("b", [0, 1, 2], [0.0, math.nan, 4.0])], y_range=(0, 5)),
    ]
    return svg_panels(panels, title="Story", x_label="step")


def test_equal_charts_are_equal_texts_in_another_process_too() -> None:
    code = (
        "from components.shared.report import svg_bars;"
        "print(svg_bars(['a', 'b'], [0.1, 0.2], title='t', value_label='v', lower=[0, 0], upper=[1, 1]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert _chart() == _chart()


def test_a_chart_is_one_labelled_image_without_prolog_metadata_or_style_sheet() -> None:
    chart = str(_chart())
    root = ElementTree.fromstring(chart)
    svg = root[0]
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Story"
    assert not re.search(r"<\?xml|<!DOCTYPE|<metadata|<style|<!--|\d{4}-\d\d-\d\dT", chart)
    assert {"Story", "step", "reward (sd)", "KL (nats)", "target", "a", "b"} <= set(root.itertext())


def test_ids_of_charts_on_one_page_do_not_clash_and_references_resolve() -> None:
    html = str(_chart()) + str(svg_bars(["a"], [0.5], title="t", value_label="v", limits=[0.4]))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_charts_take_the_colours_of_the_page() -> None:
    chart = str(_chart())
    css = (Path(report_module.__file__).parent / "report.css").read_text()
    variables = set(re.findall(r"var\((--[\w-]+)", chart))
    assert {"--ink", "--muted", "--grid", "--series-1"} <= variables
    for variable in variables:
        assert css.count(f"{variable}:") == 2, f"{variable} needs a light and a dark value"
    assert not re.search(r"#0[0ab]0\d0\d", chart)


@pytest.mark.parametrize("text", ["cost $5 and $6", r"$\frac{1}{2}$", "a_b^c", "_hidden"])
def test_text_is_never_read_as_mathematics_nor_left_out(text: str) -> None:
    chart = svg_line([Series(text, [1, 2], [1, 2])], title=text, x_label="x", y_label="y")
    shown = [item.replace("\u200b", "") for item in ElementTree.fromstring(str(chart)).itertext()]
    assert shown.count(text) == 2


@pytest.mark.parametrize(
    "chart",
    [
        lambda: svg_line([], title="t", x_label="x", y_label="y"),
        lambda: svg_line([Series("a", [], [])], title="t", x_label="x", y_label="y"),
        lambda: svg_line([Series("a", [1, 2], [None, math.inf])], title="t", x_label="x", y_label="y"),
        lambda: svg_bars([], [], title="t", value_label="v"),
        lambda: svg_bars(["a"], [None], title="t", value_label="v", lower=[None], upper=[None]),
        lambda: svg_histogram({}, title="t", x_label="x"),
        lambda: svg_histogram({"a": [], "b": [math.nan]}, title="t", x_label="x"),
        lambda: svg_bars(["很长的标签" * 20], [1.0], title="t", value_label="v"),
    ],
)
def test_a_chart_without_data_is_still_a_chart(chart) -> None:
    ElementTree.fromstring(str(chart()))


def test_a_bar_without_a_value_says_so() -> None:
    assert "no data" in svg_bars(["a", "b"], [0.2, None], title="t", value_label="v")


def test_a_series_with_more_values_than_positions_is_an_error_that_names_it() -> None:
    with pytest.raises(PlumblineError, match=r"'reward'.*1 positions for 2 values"):
        svg_line([Series("reward", [1], [1, 2])], title="t", x_label="x", y_label="y")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ABSENT),
        (math.nan, ABSENT),
        (math.inf, ABSENT),
        (0, "0"),
        (1234567, "1,234,567"),
        (-3, "−3"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (0.0, "0.000"),
        (1.5e-7, "1.50e-07"),
    ],
)
def test_numbers_read_as_people_write_them(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_intervals_name_unknown_ends() -> None:
    assert format_interval([0.5, 0.75], 2) == "[0.50,\u00a00.75]"
    assert format_interval([0.5, None], 1) == f"[0.5,\u00a0{ABSENT}]"
    assert format_interval(None) == ABSENT
    assert format_interval([None, None]) == ABSENT


def test_numbers_stand_right_and_absent_cells_are_dashes() -> None:
    html = table(["name", "n"], [["a", 1000], ["b", None]])
    assert '<td class="number">1,000</td>' in html
    assert f'<td class="number">{ABSENT}</td>' in html
    assert '<th scope="col" class="number">n</th>' in html


@pytest.mark.parametrize(
    ("word", "tone"),
    [("PROMOTE", "good"), ("KEEP", "good"), ("HOLD", "warn"), ("BLOCK", "bad"), ("ROLLBACK", "bad"), ("ERROR", "bad")],
)
def test_a_verdict_has_its_tone_and_its_word(word: str, tone: str) -> None:
    assert badge(word) == f'<span class="badge {tone}">{word}</span>'


def _palette(css: str, *, dark: bool) -> dict[str, str]:
    light, night = css.split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", night if dark else light))


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_meets_wcag_aa(dark: bool) -> None:
    colours = _palette((Path(report_module.__file__).parent / "report.css").read_text(), dark=dark)
    text_on = [("ink", "page"), ("ink", "surface"), ("muted", "page"), ("muted", "surface"), ("accent", "page")]
    text_on += [(tone, f"{tone}-soft") for tone in ("good", "warn", "bad")]
    text_on += [("ink", f"{tone}-soft") for tone in ("good", "warn", "bad")]
    for text, ground in text_on:
        assert _contrast(colours[f"--{text}"], colours[f"--{ground}"]) >= 4.5, (text, ground)
    for number in range(1, 7):
        assert _contrast(colours[f"--series-{number}"], colours["--surface"]) >= 3.0, number


def test_the_confidence_of_bounds_is_the_one_that_they_were_computed_at() -> None:
    assert format_confidence({}) == "95 %", "older statistics do not say"
    assert format_confidence({"error_probability": 0.05}) == "95 %"
    assert format_confidence({"error_probability": 0.49}) == "51 %"
    for bad in ("0.05", None, 2, True, float("nan")):
        assert format_confidence({"error_probability": bad}) == ABSENT
