"""Text for recipes comes from Python itself, each document on one side only."""

from capax.training.python_texts import python_texts


def test_no_document_is_on_both_sides(monkeypatch):
    documents = [f"document {i} " * 60 for i in range(200)]
    monkeypatch.setattr("capax.training.python_texts._docstrings", lambda: documents)
    split = python_texts()
    assert not {*split.train} & {*split.held_out}
    assert {*documents} < {*split.train, *split.held_out}
    assert 5 < len(split.held_out) < 60
    assert split == python_texts()
