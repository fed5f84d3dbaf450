"""vLLM's block and keys, from outcomes whose numbers are known."""

from __future__ import annotations

import pytest

from capax.measuring.load.request import Outcome
from capax.measuring.load.run import Load
from capax.measuring.load.summary import details_of, result_of, summary_lines, values_of

GOOD = [
    Outcome(10, 0.0, 3, 0.5, 1.0, [0.2, 0.3], "abc"),
    Outcome(20, 0.25, 5, 1.0, 3.0, [0.5] * 4, "abcde"),
    Outcome(30, 1.0, 1, 0.1, 0.1, [], "a"),
]
LOAD = Load([*GOOD, Outcome(5, 1.0, 2, 9.0, 9.0, [9.0], "x", error="boom")], 4.0, 0.125)

BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     3         
Failed requests:                         1         
Maximum request concurrency:             8         
Request rate configured (RPS):           2.50      
Benchmark duration (s):                  4.00      
Total input tokens:                      60        
Total generated tokens:                  9         
Request throughput (req/s):              0.75      
Request goodput (req/s):                 0.50      
Output token throughput (tok/s):         2.25      
Peak output token throughput (tok/s):    4.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          17.25     
---------------Time to First Token----------------
Mean TTFT (ms):                          533.33    
Median TTFT (ms):                        500.00    
P50 TTFT (ms):                           500.00    
P99.9 TTFT (ms):                         999.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          375.00    
Median TPOT (ms):                        375.00    
P50 TPOT (ms):                           375.00    
P99.9 TPOT (ms):                         499.75    
---------------Inter-token Latency----------------
Mean ITL (ms):                           416.67    
Median ITL (ms):                         500.00    
P50 ITL (ms):                            500.00    
P99.9 ITL (ms):                          500.00    
----------------End-to-end Latency----------------
Mean E2EL (ms):                          1366.67   
Median E2EL (ms):                        1000.00   
P50 E2EL (ms):                           1000.00   
P99.9 E2EL (ms):                         2996.00   
=================================================="""  # noqa: W291


def test_the_block_is_vllms_to_the_letter() -> None:
    result = result_of(LOAD, percentiles=(50.0, 99.9), goals_ms={"ttft": 600, "e2el": 1000})
    assert "\n".join(summary_lines(result, request_rate=2.5, max_concurrency=8)) == BLOCK


def test_what_was_not_asked_for_is_not_printed() -> None:
    lines = summary_lines(result_of(LOAD, metrics=("itl",)))
    text = "\n".join(lines)
    for absent in ("TTFT", "concurrency:", "configured", "goodput", "E2EL"):
        assert absent not in text
    assert "P99 ITL (ms):" in text


def test_the_result_has_vllms_keys() -> None:
    result = result_of(LOAD, goals_ms={"tpot": 300})
    assert result["completed"] == 3
    assert result["failed"] == 1
    assert result["total_output_tokens"] == 9
    assert result["request_goodput"] == pytest.approx(2 / 4)
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p99"):
            assert f"{statistic}_{metric}_ms" in result
    assert result["generator_cpu_share"] == 0.125
    details = details_of(LOAD.outcomes)
    assert details["errors"] == ["", "", "", "boom"]
    assert details["output_lens"] == [3, 5, 1, 2]


def test_a_failed_request_counts_for_no_time_and_no_goal() -> None:
    assert max(values_of(LOAD.outcomes)["ttft"]) == 1000
    assert result_of(Load(LOAD.outcomes[3:], 1.0, 0.0), goals_ms={"ttft": 1e9}) | {
        "request_goodput": 0.0,
        "completed": 0,
        "output_throughput": 0.0,
        "p99_ttft_ms": 0.0,
    } == result_of(Load(LOAD.outcomes[3:], 1.0, 0.0), goals_ms={"ttft": 1e9})
