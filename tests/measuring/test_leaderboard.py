from html.parser import HTMLParser

from capax.measuring.leaderboard import page
from capax.measuring.records import Data, Figure, Model, Record
from tests.measuring.recorded import record

HOSTILE = "</td></table><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e{{ 7*7 }}"
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "div", "table",
    "thead", "tbody", "tr", "th", "td", "span",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects what a browser would make elements of, and the text of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def everywhere(text: str) -> Record:
    return record(
        kind=text,
        time=text,
        model=Model(name=text, digest=text),
        data=Data(name=text, digest=text),
        method={text: text},
        settings={text: text},
        machine={"cpu": text, "isa": text},
        figures=(
            Figure(name=text, value=1.0, unit=text, of_machine=True, higher_is_better=True),
            Figure(name="none", value=None, note=text),
        ),
    )


def test_whatever_a_record_holds_is_text() -> None:
    read = Reader(page([everywhere(HOSTILE), record()], HOSTILE))
    assert read.tags <= ALLOWED
    assert not {name for name in read.attributes if name.startswith("on")} | (
        read.attributes & {"src", "href"}
    )
    assert any(HOSTILE in cell for cell in read.cells)


def test_the_best_is_first_and_those_without_a_value_last() -> None:
    records = [record("bad", 3.0), record("none", None), record("good", 1.0), record("fair", 2.0)]
    names = [c.split()[0] for c in Reader(page(records, "t")).cells[::3]]
    # each row's name cell is followed by one cell for each of two figures
    assert [name.removesuffix("weights") for name in names] == ["good", "fair", "bad", "none"]


def test_records_that_are_not_comparable_are_apart() -> None:
    records = [record(), record(settings={"context": 128}), record("other")]
    assert page(records, "t").count("<section>") == 2


def test_of_one_model_measured_twice_the_latest_counts() -> None:
    text = page([record(value=3.0), record(value=2.5)], "t")
    assert text.count("<td>small") == 1
    assert "2.5" in text


def test_one_is_no_plural() -> None:
    text = " ".join(page([record()], "t").split())
    assert "1 record in 1 group." in text
    text = " ".join(page([record(), record(kind="other")], "t").split())
    assert "2 records in 2 groups." in text


def test_no_records() -> None:
    assert "There are no records yet." in page([], "t")
