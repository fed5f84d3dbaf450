"""Caps hold whatever happens to the calls under them."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.endpoints import BudgetExceeded, Entry, Ledger, Price
from capax.engine.outputs import Usage
from capax.errors import CapacityError, ConfigError

PRICE = Price(prompt_per_million=2.0, cached_per_million=0.5, completion_per_million=8.0)


def test_a_call_is_settled_at_what_it_took() -> None:
    entries: list[Entry] = []
    ledger = Ledger(max_tokens=1000, on_entry=entries.append)
    price = Price(1.0, 0.5, 4.0, flops_per_token=10.0)
    with ledger.call("e", "ask", price, prompt_tokens=100, new_tokens=500) as call:
        assert ledger.tokens_left == 400
        call.settle(Usage(90, 20, cached_tokens=30))
    (entry,) = entries
    assert (entry.status, entry.prompt_tokens, entry.completion_tokens) == ("ok", 90, 20)
    assert entry.money == pytest.approx((60 * 1 + 30 * 0.5 + 20 * 4) / 1e6)
    assert entry.flops == 80 * 10
    assert entry.seconds >= 0
    assert ledger.totals.tokens == 110
    assert ledger.tokens_left == 890


def test_a_call_of_unknown_outcome_costs_what_it_reserved() -> None:
    ledger = Ledger(max_tokens=700)
    with (
        pytest.raises(TimeoutError),
        ledger.call("e", "ask", PRICE, prompt_tokens=100, new_tokens=500),
    ):
        raise TimeoutError
    assert ledger.totals.tokens == 600
    assert ledger.totals.money == pytest.approx((100 * 2 + 500 * 8) / 1e6)
    with pytest.raises(BudgetExceeded, match="may take 101 tokens but 100 of 700 are left"):
        ledger.call("e", "ask", PRICE, prompt_tokens=1, new_tokens=100).__enter__()


def test_a_call_that_was_turned_away_costs_nothing() -> None:
    ledger = Ledger(max_tokens=700)
    with ledger.call("e", "ask", PRICE, prompt_tokens=100, new_tokens=500) as call:
        call.refuse()
    assert ledger.totals.tokens == 0
    assert ledger.totals.n_calls == 1


def test_money_is_capped_too() -> None:
    ledger = Ledger(max_money=0.001)
    with pytest.raises(BudgetExceeded, match=r"may cost 0.0042 but 0.001 of 0.001 is left"):
        ledger.call("e", "ask", PRICE, prompt_tokens=100, new_tokens=500).__enter__()
    assert issubclass(BudgetExceeded, CapacityError)


def test_sums_by_purpose_add_up() -> None:
    ledger = Ledger()
    for purpose in ("a", "b", "a"):
        with ledger.call("e", purpose, PRICE, prompt_tokens=9, new_tokens=9) as call:
            call.settle(Usage(3, 2))
    assert {name: t.tokens for name, t in ledger.by_purpose().items()} == {"a": 10, "b": 5}
    document = ledger.to_dict()
    assert document["total"]["n_calls"] == 3
    assert document["by_purpose"]["a"]["prompt_tokens"] == 6


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_bad_price_or_cap_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="prompt_per_million"):
        Price(prompt_per_million=value)
    if value != float("inf"):
        with pytest.raises(ConfigError, match="max_money"):
            Ledger(max_money=value)


_CALLS = st.lists(
    st.tuples(
        st.integers(0, 60),  # prompt bound
        st.integers(1, 60),  # new tokens bound
        st.sampled_from(["settle", "fail", "refuse"]),
        st.floats(0, 1),
    ),
    max_size=60,
)


@given(_CALLS, st.integers(0, 500))
def test_a_cap_is_never_exceeded(calls: list[tuple[int, int, str, float]], cap: int) -> None:
    ledger = Ledger(max_tokens=cap)
    for prompt, new, outcome, share in calls:
        try:
            with ledger.call("e", "ask", PRICE, prompt_tokens=prompt, new_tokens=new) as call:
                if outcome == "settle":
                    call.settle(Usage(int(prompt * share), int(new * share)))
                elif outcome == "refuse":
                    call.refuse()
                else:
                    raise ConnectionError
        except (BudgetExceeded, ConnectionError):
            pass
        assert ledger.totals.tokens <= cap
        assert ledger.tokens_left == cap - ledger.totals.tokens  # nothing stays reserved


def test_threads_do_not_overdraw_together() -> None:
    ledger = Ledger(max_tokens=1000)
    inside = threading.Barrier(10)
    refused = []

    def work() -> None:
        for _ in range(50):
            try:
                with ledger.call("e", "ask", PRICE, prompt_tokens=4, new_tokens=4) as call:
                    call.settle(Usage(4, 3))
            except BudgetExceeded:
                refused.append(1)

    threads = [threading.Thread(target=lambda: (inside.wait(), work())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals.tokens <= 1000
    assert ledger.totals.tokens > 1000 - 8
    assert len(refused) == 500 - ledger.totals.n_calls
