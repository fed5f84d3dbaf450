"""Constraints: what they let through has the form, and what is no form is refused, not ignored."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax.decoding.constraint import Constraint, ConstraintCompiler
from capax.decoding.structured import MAX_FORM_NBYTES, Form, StructuredOutputs
from capax.errors import ConfigError
from capax.files.describe import load_tokenizer
from capax.files.model_file import open_model
from capax.files.tokenizer import Tokenizer
from tests.models import VOCAB_SIZE, gguf_model

TOKENIZER: Tokenizer = load_tokenizer(open_model(gguf_model("llama")))
COMPILER = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
MAX_TOKENS = 400
CLOSING = [TOKENIZER.encode(text, add_special=False)[0] for text in ('"', "}", "]", "1", ",")]


def constraint(**form: Any) -> Constraint:
    return COMPILER.compile(StructuredOutputs(**form))()


def allowed(words: np.ndarray) -> list[int]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def walk(state: Constraint, seed: int) -> str | None:
    """A random text that the constraint lets through; None if it does not come to an end."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        words = state.mask()
        assert words is not None
        choices = allowed(words)
        assert choices
        closing = [token for token in [*TOKENIZER.eos_ids, *CLOSING] if token in choices]
        token = int(rng.choice(closing if closing and rng.random() < 0.7 else choices))
        is_complete = state.accept(token)
        if token not in TOKENIZER.eos_ids:
            tokens.append(token)
        if is_complete:
            return TOKENIZER.decode(tokens)
    return None


# --- what comes out has the form ---------------------------------------------------------------

_NAMES = st.sampled_from(["a", "b", "name", "with space", "ü", "$ref", '"'])
_LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda low, n: {"type": "string", "minLength": low, "maxLength": low + n},
              st.integers(0, 3), st.integers(0, 4)),
    st.builds(lambda low, n: {"type": "integer", "minimum": low, "maximum": low + n},
              st.integers(-50, 50), st.integers(0, 200)),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda values: {"enum": values},
              st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9), st.booleans()),
                       min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, st.text(max_size=6)),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]+$"}),
)  # fmt: skip


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], n_required: int, is_open: bool) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:n_required],
            "additionalProperties": is_open,
        }

    return st.builds(
        build, st.dictionaries(_NAMES, inner, max_size=3), st.integers(0, 3), st.booleans()
    )


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda items, low, n: {
            "type": "array", "items": items, "minItems": low, "maxItems": low + n,
        },
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip


SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        _arrays(inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_is_let_through_is_valid_under_its_schema(schema: dict[str, Any], seed: int) -> None:
    try:
        state = constraint(json=schema)
    except ConfigError:
        return  # refusing is always allowed; that most are not is the next test's
    text = walk(state, seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


def test_ordinary_schemas_compile_and_random_answers_come_to_an_end() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
        "$defs": {"tag": {"enum": ["x", "y"]}},
    }
    texts = [walk(constraint(json=schema), seed) for seed in range(20)]
    for text in texts:
        assert text is not None
        jsonschema.validate(json.loads(text), schema)
    assert len(set(texts)) > 10


def test_the_check_would_see_a_wrong_answer() -> None:
    """A negative control: the answers of one schema do not satisfy another."""
    text = walk(constraint(json={"type": "array", "items": {"type": "integer"}}), 0)
    assert text is not None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), {"type": "object"})


@pytest.mark.parametrize("seed", range(5))
def test_json_object_is_an_object(seed: int) -> None:
    text = walk(constraint(json_object=True), seed)
    assert text is None or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", [r"[a-f]{3}-[0-9]+", "yes|no", r"a*b?", r"ü+ [^x]{2}"])
def test_a_regex_matches_the_whole_answer(pattern: str) -> None:
    for seed in range(5):
        text = walk(constraint(regex=pattern), seed)
        assert text is None or re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "(" item ("," item)* ")"\nitem ::= [a-c]+',
        'start: "(" item ("," item)* ")"\nitem: /[a-c]+/',
    ],
)
def test_gbnf_and_lark_are_told_apart(grammar: str) -> None:
    texts = [walk(constraint(grammar=grammar), seed) for seed in range(10)]
    assert any(texts)
    for text in texts:
        assert text is None or re.fullmatch(r"\([a-c]+(,[a-c]+)*\)", text)


def test_a_choice_is_one_of_its_strings() -> None:
    choices = ["red", "red wine", 'say "x"\n', "ü"]
    found = {walk(constraint(choice=choices), seed) for seed in range(60)}
    assert found == set(choices)


def test_control_tokens_match_no_text() -> None:
    """A grammar that spells a control token gets its letters, never the token."""
    text = "<|im_start|>"
    control = TOKENIZER.control_texts[text]
    state = constraint(choice=[text])
    for token in TOKENIZER.encode(text, add_special=False):
        words = state.mask()
        assert words is not None
        assert control not in allowed(words)
        state.accept(token)


def test_tokens_beyond_the_tokenizer_are_never_allowed() -> None:
    wide = ConstraintCompiler(TOKENIZER, VOCAB_SIZE + 100)
    try:
        words = wide.compile(StructuredOutputs(regex="(?s).*"))().mask()
    finally:
        wide.close()
    assert words is not None
    assert 32 * len(words) >= VOCAB_SIZE + 100
    assert max(allowed(words)) < VOCAB_SIZE


def test_two_choices_of_one_form_go_their_own_ways() -> None:
    factory = COMPILER.compile(StructuredOutputs(choice=["ab", "cd"]))
    first, second = factory(), factory()
    first.accept(TOKENIZER.encode("a", add_special=False)[0])
    words = second.mask()
    assert words is not None
    assert TOKENIZER.encode("c", add_special=False)[0] in allowed(words)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "nothing but must have exactly one"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar"),
        ({"json_object": 1}, "json_object is 1"),
        ({"json": "{"}, "not JSON"),
        ({"json": "[1]"}, "must be an object"),
        ({"json": {"type": {1, 2}}}, "not JSON"),
        ({"json": {"minimum": float("nan")}}, "not JSON"),
        ({"json": {"type": "strng"}}, "Invalid type"),
        ({"json": {"not": {"type": "string"}}}, "not"),
        ({"json": {"type": "string", "format": "klingon"}}, "klingon"),
        ({"json": {"$ref": "http://127.0.0.1:9/x.json"}}, "not present in a registry"),
        ({"json": {"$ref": "#/$defs/none"}}, "cannot be used"),
        ({"json": {"$ref": "#"}}, "cannot be used"),
        (
            {"json": {"type": "object", "not": {}, "x-guidance": {"lenient": True}}},
            "not",
        ),
        ({"regex": ""}, "empty"),
        ({"regex": "("}, "cannot be used"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"grammar": "root ::= missing"}, "missing"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": 5}, "must be text"),
        ({"choice": []}, "1 to"),
        ({"choice": "red"}, "list of strings"),
        ({"choice": [""]}, "non-empty"),
        ({"choice": ["\ud800"]}, "surrogate"),
    ],
)
def test_what_is_no_form_is_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        constraint(**form)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _ref_chain(n: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{n}": {"type": "string"}}}


def _ref_tree(n: int) -> dict[str, Any]:
    """2^n paths through n definitions."""
    definitions: dict[str, Any] = {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2}
        for i in range(n)
    }
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{n}": {"type": "string"}}}


BOMBS: dict[str, dict[str, Any]] = {
    "nested groups": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "nested groups within the limit": {"regex": "(" * 60 + "a" + ")" * 60},
    "nested lark groups": {"grammar": "start: " + "(" * 60 + '"a"' + ")" * 60},
    "nested gbnf groups": {"grammar": "root ::= " + "(" * 60 + '"a"' + ")" * 60},
    "counted repeats of repeats": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "counted repeats in gbnf": {"grammar": 'root ::= (("a"{1,9999}){1,9999}) {1,9999}'},
    "counted repeats in lark": {"grammar": "start: ((" + '"a"{1,9999}){1,9999}){1,9999}'},
    "exponential automaton": {"regex": "(.*a.*b.*c.*){60}x{2000}"},
    "many optional parts": {"regex": "".join(f"(.*{chr(97 + i % 26)})?" for i in range(2000))},
    "backtracking": {"regex": "((a*)*)*b"},
    "unicode classes": {"regex": r"(\p{L}{0,50}x){0,50}" * 40},
    "empty recursion": {"grammar": "start: start start |"},
    "mutual recursion": {"grammar": "start: a\na: b\nb: a"},
    "deep schema": {"json": _nested(30)},
    "too deep a schema": {"json": _nested(100)},
    "long chain of refs": {"json": _ref_chain(1000)},
    "tree of refs": {"json": _ref_tree(30)},
    "schema within itself": {
        "json": {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}
            },
        }
    },
    "refs in a circle": {
        "json": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        }
    },
    "huge enum": {"json": {"enum": [f"value{i}" for i in range(4500)]}},
    "many properties": {
        "json": {"properties": {f"p{i}": {"type": "string"} for i in range(1800)}}
    },
    "products of choices": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for i in range(8)]}
                for j in range(12)
            ]
        }
    },
    "long string": {"json": {"type": "string", "minLength": 10**9}},
    "long array": {"json": {"type": "array", "minItems": 10**9, "items": {"type": "null"}}},
    "huge numbers": {"json": {"type": "integer", "minimum": -(10**300), "maximum": 10**300}},
    "tiny step": {"json": {"type": "number", "multipleOf": 1e-300}},
    "too large": {"regex": "a" * (MAX_FORM_NBYTES + 1)},
    "too many choices": {"choice": [str(i) for i in range(5000)]},
    "long choices": {"choice": ["x" * 20_000] * 4},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_compiles_within_its_limits(name: str) -> None:
    try:
        state = constraint(**BOMBS[name])
    except ConfigError:
        pass
    else:
        assert state.mask() is not None
    # The next one is not worse off.
    assert walk(constraint(choice=["ok"]), 0) == "ok"


def test_a_helper_that_dies_costs_one_error_and_is_replaced() -> None:
    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    try:
        compiler.compile(StructuredOutputs(choice=["a"]))
        helper = compiler._helper
        assert helper is not None
        first = helper._process
        assert first is not None
        first.kill()
        first.wait()
        compiler.compile(StructuredOutputs(choice=["b"]))
        assert helper._process is not None
        assert helper._process.pid != first.pid
    finally:
        compiler.close()


def test_a_grammar_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all every grammar takes too long; the helper is killed and replaced."""
    from capax.decoding import constraint_helper

    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    try:
        compiler.compile(StructuredOutputs(choice=["a"]))
        helper = compiler._helper
        assert helper is not None
        assert helper._process is not None
        first = helper._process.pid
        monkeypatch.setattr(constraint_helper, "COMPILE_SECONDS", 0.0)
        with pytest.raises(ConfigError, match="takes more than"):
            compiler.compile(Form("regex", BOMBS["many optional parts"]["regex"]))
        monkeypatch.undo()
        compiler.compile(StructuredOutputs(choice=["c"]))
        assert helper._process.pid != first
    finally:
        compiler.close()


def test_compiled_forms_are_kept_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from capax.decoding import constraint as module

    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    try:
        monkeypatch.setattr(module, "KEPT_NBYTES", 3 * module.FIXED_NBYTES + 5000)
        for i in range(6):
            compiler.compile(StructuredOutputs(regex=f"{i}"))
        assert [form.text for form in compiler._kept] == ["3", "4", "5"]
        compiler.compile(StructuredOutputs(regex="3"))
        assert [form.text for form in compiler._kept] == ["4", "5", "3"]
    finally:
        compiler.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from capax.decoding import constraint as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    with pytest.raises(ConfigError, match=r"pip install capax\[serve\]"):
        compiler.compile(StructuredOutputs(json_object=True))
