"""Results in lm-evaluation-harness's layout, read by the harness itself."""

import json
from pathlib import Path

import pytest

from capax.errors import ConfigError
from capax.files.lm_eval_names import sanitized
from capax.measuring.lm_eval_tables import export, results
from capax.measuring.records import Data, Model
from tests.measuring.recorded import record


def test_the_layout(tmp_path: Path) -> None:
    one = record()
    paths = export([one, record("other")], tmp_path, {one.id: [{"doc_id": 0}]})
    names = [str(path.relative_to(tmp_path)) for path in paths]
    assert names == [
        "small_weights=Q4_1_kv=f16/results_2026-01-02T03-04-05.000000.json",
        "small_weights=Q4_1_kv=f16/samples_perplexity_text_txt_2026-01-02T03-04-05.000000.jsonl",
        "other_weights=Q4_1_kv=f16/results_2026-01-02T03-04-05.000000.json",
    ]
    document = json.loads(paths[0].read_text())
    row = document["results"]["perplexity_text_txt"]
    assert row["perplexity,none"] == 2.0
    assert row["perplexity_stderr,none"] == pytest.approx(0.4 / 3.92, rel=1e-4)
    assert row["speed_stderr,none"] == "N/A"
    assert document["higher_is_better"]["perplexity_text_txt"]["speed"] is True
    assert document["n-samples"]["perplexity_text_txt"] == {"original": 4, "effective": 4}
    assert document["config"]["model_args"]["sha256"] == "smallsmall"


@pytest.mark.slow  # imports the harness
@pytest.mark.filterwarnings("ignore")
def test_the_harness_makes_its_table_of_it() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.utils import make_table

    documents = [record(), record(data=Data(name="b.txt", digest="e"))]
    table = make_table(results(documents, "small"))
    assert "perplexity_text_txt" in table
    assert "perplexity_b_txt" in table
    assert "0.102" in table


@pytest.mark.parametrize(
    "name", ["../../etc/x", "..", "/abs", "a\0b", "", "name\n", "-" * 5000, "💥", ".hidden/../.."]
)
def test_a_hostile_name_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (path,) = export([record(model=Model(name=name), method={})], out)
    assert path.parent.parent == out
    assert path.parent.name not in ("", ".", "..")
    assert path.resolve().is_relative_to(out.resolve())
    assert len(sanitized(name)) <= 121


def test_two_records_of_one_task_are_refused() -> None:
    with pytest.raises(ConfigError, match="are both task perplexity_text_txt"):
        results([record(), record(value=3.0)], "small")
