"""bench-S: answers that hold, frequencies of Zipf, and problems that are never learnt."""

import random
from collections import Counter

import numpy as np

from capax.training.bench_s import END, ID, NAMES, TOKENS, BenchS, Mix, Problem, encode


def problems(n: int, mix: Mix | None = None) -> list[Problem]:
    bench, rng = BenchS(mix), random.Random(5)
    return [bench.problem(rng) for _ in range(n)]


def test_answers_are_the_steps_of_the_skill() -> None:
    seen: dict[tuple[str, str], str] = {}
    for p in problems(20_000):
        assert len(p.asked) == len(p.answer)
        if p.family == "s":
            modulus = NAMES.index(p.opening[1]) + 2
            sums = (np.cumsum([int(c) for c in p.asked]) % modulus).tolist()
            assert p.answer == "".join(map(str, sums))
        elif p.family == "t":  # a letter has one image in a table
            for letter, image in zip(p.asked, p.answer, strict=True):
                assert seen.setdefault((p.opening, letter), image) == image
        else:  # a state and a letter have one next state
            for before, letter, after in zip("0" + p.answer, p.asked, p.answer, strict=False):
                assert seen.setdefault((p.opening, before + letter), after) == after


def test_skills_are_frequent_as_zipf_says_and_families_as_the_mix_says() -> None:
    drawn = problems(40_000, Mix(zipf=1.0))
    families = Counter(p.family for p in drawn)
    for family, share in zip("tms", Mix().families, strict=True):
        assert abs(families[family] / 40_000 - share) < 0.01
    tables = Counter(p.opening[1:] for p in drawn if p.family == "t")
    assert abs(tables["AA"] / tables["AB"] - 2) < 0.25
    assert abs(tables["AA"] / tables["AJ"] - 10) < 3


def test_what_is_held_out_is_never_learnt_whatever_the_seed() -> None:
    bench, rng = BenchS(), random.Random(1)
    texts = [p for p in (bench.learnt(rng) for _ in range(6_000)) if p.family != "junk"]
    assert not any(p.is_held_out for p in texts)
    asked = bench.held_out(300, seed=3)
    assert all(p.is_held_out for p in asked)
    assert asked == BenchS(Mix(junk=0.5, noise=0.5)).held_out(300, seed=3)
    # Negative control: without the rule one in sixteen would be.
    assert sum(p.is_held_out for p in problems(5_000)) > 200


def test_noise_spoils_one_token_and_junk_is_neither_family() -> None:
    clean = {p.opening + p.asked: p.answer for p in problems(60_000)}
    bench, rng = BenchS(Mix(noise=0.5, junk=0.25)), random.Random(9)
    texts = [bench.learnt(rng) for _ in range(8_000)]
    assert abs(sum(p.family == "junk" for p in texts) / 8_000 - 0.25) < 0.02
    known = [(p, clean[p.opening + p.asked]) for p in texts if p.opening + p.asked in clean]
    wrong = [sum(a != b for a, b in zip(p.answer, right, strict=True)) for p, right in known]
    assert set(wrong) == {0, 1}
    assert abs(np.mean(wrong) - 0.5) < 0.05


def test_a_block_is_a_function_of_seed_and_step_and_hides_what_is_asked() -> None:
    bench = BenchS()
    block = bench.block(3, 7, 256)
    assert np.array_equal(block, BenchS().block(3, 7, 256))
    assert not np.array_equal(block[:5, :8], bench.block(4, 7, 256)[:5, :8])
    sizes = [int((bench.block(3, step, 256) != ~END).sum()) for step in range(200)]
    assert abs(np.mean(sizes) - 256) < 3
    short, long = encode([Problem("t", "tAA", "ab", "cd"), Problem("t", "tAA", "abc", "cde")])
    asked = [ID[c] for c in "tAAab"]
    assert short.tolist() == [
        *(~i for i in asked[:4]),
        ID["c"],
        ~asked[4],
        ID["d"],
        END,
        ~END,
        ~END,
    ]
    assert [TOKENS[i if i >= 0 else ~i] for i in long] == list("tAAacbdce;")
    (junk,) = encode([Problem("junk", "a", "", "bc")])
    assert junk.tolist() == [~ID["a"], ID["b"], ID["c"], END]
    assert len(TOKENS) == len(set(TOKENS)) <= 64
