"""An answer built state by state: of several draws of the next state, the most frequent stays.

Whole answers can be voted only as far as most of them are right, and a chain that broke stays
broken. Here each state is agreed on before the next is drawn, all draws beginning with what is
agreed, so a stray draw costs one vote. The verifier is the model's agreement with itself: nothing
here knows the procedure. Draws are bound to the form of an answer, as compact JSON.

Costs somewhat fewer sampled tokens than as many whole answers, whose frame is given here; but the
prompt is asked again for each state, and read again where the endpoint does not keep it.
"""

from __future__ import annotations

import dataclasses

from capax.decoding.params import SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints.endpoint import Choice, Completion, Endpoint, GenerateRequest
from capax.engine.outputs import Usage
from capax.measuring.procbench.problem import Kind, Task
from capax.measuring.procbench.voting import most_frequent

_STRING = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_INTEGER = r"-?(0|[1-9][0-9]*)"
_STATES: dict[Kind, str] = {
    "str": _STRING,
    "int": _INTEGER,
    "strs": rf"\[({_STRING}(,{_STRING})*)?\]",
    "ints": rf"\[({_INTEGER}(,{_INTEGER})*)?\]",
}
_BEGIN, _FINAL = '{"intermediate":[', ',"final":'


async def answer_stepwise(
    endpoint: Endpoint, prompt: str, task: Task, params: SamplingParams
) -> Completion:
    """Return one answer, whose usage is that of all its draws.

    `params`: `n` draws of each state; `max_tokens` and `seed` must be given. The answer, what is
    given of it included, has at most max_tokens, all draws together n times as many, as n whole
    answers have. Raises as the endpoint does.
    """
    assert params.max_tokens is not None
    assert params.seed is not None
    text, form = _BEGIN, rf"{_STATES[task.kind]}[,\]]"
    prompt_tokens = sampled = cached = number = 0
    seconds, is_whole = 0.0, False
    n_before = await endpoint.count_prompt(prompt)
    while not is_whole:
        n_written = await endpoint.count_prompt(prompt + text) - n_before
        left = params.max_tokens - max(n_written, -(-sampled // params.n))
        if left < 1:
            break
        part = dataclasses.replace(
            params,
            max_tokens=left,
            seed=params.seed + number,  # draws of one state must not be those of another
            structured_outputs=StructuredOutputs(regex=form),
        )
        drawn = await endpoint.generate(GenerateRequest(prompt + text, part, purpose="procbench"))
        prompt_tokens += drawn.usage.prompt_tokens
        sampled += drawn.usage.completion_tokens
        cached += drawn.usage.cached_tokens
        seconds += drawn.seconds
        number += 1
        states = [choice.text for choice in drawn.choices if choice.finish_reason == "stop"]
        if not states:
            text += drawn.text
            break
        state = most_frequent(states)
        text += state
        is_whole = state.endswith("}")
        if state.endswith("]"):
            text, form = text + _FINAL, rf"{_STATES[task.final_kind]}\}}"
    choice = Choice(0, text, "stop" if is_whole else "length")
    return Completion((choice,), Usage(prompt_tokens, sampled, cached), seconds, endpoint.name)
