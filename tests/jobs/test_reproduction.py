"""`jaxkit reproduce`: the page, the verdicts, the exit code; slow, every quick experiment."""

import html.parser

import pytest

from jaxkit import cli, plotting
from jaxkit.experiments import rex
from jaxkit.experiments.evidence import Claim, Evidence, Table
from jaxkit.jobs import reproduction

SHOWN = Claim("a < b", "1.0", "b - a = 0.9", "shown", (0.8, 1.0))
NULL = Claim("c < d", "2.0", "d - c = 0.0", "null result")
MISSING = Claim("e < f", "3.0", "f - e = -1", "not shown")
NEVER = Claim("g < h", "4.0", "h - g = -1", "not shown", used_to_show=False)


def found(*claims):
    figure, panel = plotting.axes()
    panel.plot([0, 1], [1, 0])
    return Evidence(
        "Title & more", claims, [Table("Numbers", ("x",), [(0.123456,)])], {"f": figure}
    )


class Cells(html.parser.HTMLParser):
    """Collects what each table cell says and where each picture comes from."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.sources, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "td"
        if tag == "td":
            self.cells.append("")
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_the_page_says_every_claim_and_needs_no_other_file():
    results = [reproduction.Result("rex", found(SHOWN, NULL), 3.0)]
    page = Cells(reproduction.evidence_page(results, quick=True))
    assert ["a < b", "1.0", "b - a = 0.9", "0.8 to 1", "shown"] == page.cells[10:15]
    assert ["c < d", "2.0", "d - c = 0.0", "", "null result"] == page.cells[15:20]
    assert "0.1235" in page.cells
    assert len(page.sources) == 1
    assert page.sources[0].startswith("data:image/png;base64,")


def test_the_page_counts_verdicts_by_experiment_and_in_all():
    results = [
        reproduction.Result("rex", found(SHOWN, NULL), 3.0),
        reproduction.Result("width", found(SHOWN, MISSING), 4.0),
    ]
    page = Cells(reproduction.evidence_page(results, quick=False))
    assert page.cells[:15] == [
        *"rex 1 1 0 3".split(),
        *"width 1 0 1 4".split(),
        *"all 2 1 1 7".split(),
    ]


@pytest.mark.parametrize(("claims", "code"), [((SHOWN, NULL, NEVER), None), ((SHOWN, MISSING), 1)])
def test_the_exit_code_tells_whether_a_claim_that_used_to_show_is_missing(
    tmp_path, monkeypatch, claims, code
):
    monkeypatch.setattr(rex, "run", lambda *, quick, seed: found(*claims))
    words = ["reproduce", "rex", "--quick", "--out", str(tmp_path)]
    if code is None:
        cli.main(words)
    else:
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == code
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "rex" / "f.png").exists()


def test_what_was_found_stays_when_a_later_experiment_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(rex, "run", lambda *, quick, seed: found(SHOWN))
    monkeypatch.setattr("jaxkit.experiments.width.run", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reproduction.reproduce(["rex", "width"], quick=True, out=tmp_path, parallel=1)
    assert "b - a = 0.9" in (tmp_path / "report.html").read_text("utf-8")


def test_an_unknown_experiment_is_named_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="'rex'"):
        reproduction.reproduce(["width", "rexx"], out=tmp_path)
    assert not list(tmp_path.iterdir())
