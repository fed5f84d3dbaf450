"""TTSPM (2025, arXiv 2505.20522), acceptance 9: rounds that show all answers keep what was read.

A round reads what was appended and the last token sampled before, which nothing had read yet.
"""

from pathlib import Path

import pytest

from capax import LLM, SamplingParams


@pytest.mark.slow
def test_a_round_reads_only_what_was_appended(smollm2: Path) -> None:
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    with LLM(smollm2, threads=1, ctx_size=2048, n_sequences=2) as llm:
        encode = llm.tokenizer.encode
        ids = encode("The rain fell on the hills and the river rose. " * 120)[:1024]
        again = encode(" Check your previous answer and answer again, please, step by step:")[:16]
        for n_before in (0, 1, 2, 3):
            (made,) = llm.generate([ids], params)
            assert made.usage.prompt_tokens == len(ids)
            if n_before:
                assert made.usage.prompt_tokens - made.usage.cached_tokens == len(again) + 1
            else:
                assert made.usage.cached_tokens == 0
            ids = [*ids, *made.outputs[0].token_ids, *again]
