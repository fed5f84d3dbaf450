"""The sampling flags, and what they default to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.decoding.params import SamplingParams
    from capax.decoding.structured import StructuredOutputs
    from capax.files.model_file import ModelFile

F = TypeVar("F", bound=Callable[..., Any])

# llama.cpp's defaults; a model's own recommendation comes before them.
DEFAULTS: dict[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def check_flag(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse a value out of range before anything is loaded. Raises BadParameter."""
    name = parameter.name or ""
    if value is None or value == parameter.default or (name == "max_tokens" and value == -1):
        return value  # -1 tokens is no limit
    from capax.decoding.params import LIMITS, check_number

    try:
        check_number(name, value, LIMITS[name])
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value


def check_biases(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> Sequence[str]:
    """Refuse a bias that cannot be read. Raises BadParameter."""
    for text in texts:
        try:
            parse_bias(text)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from None
    return texts


def sampling_options(function: F) -> F:
    """Add --max-tokens, --temp and the other flags of `SamplingParams`."""
    for option in reversed(
        (
            click.option(
                "-n", "--max-tokens", "--predict", "max_tokens", type=int, metavar="N",
                callback=check_flag,
                help="Tokens to generate. Default, and -1: until the model ends or the context "
                "is full.",
            ),
            click.option(
                "--temp", "--temperature", "temperature", type=float, metavar="T",
                callback=check_flag,
                help="Temperature; 0 takes the most likely token. Default: the model's, else 0.8.",
            ),
            click.option(
                "--top-k", type=int, metavar="K", callback=check_flag,
                help="Keep the K most likely tokens; 0 keeps all. Default: the model's, else 40.",
            ),
            click.option(
                "--top-p", type=float, metavar="P", callback=check_flag,
                help="Keep the fewest tokens of this probability. Default: the model's, else 0.95.",
            ),
            click.option(
                "--min-p", type=float, metavar="P", callback=check_flag,
                help="Keep tokens of this share of the best's. Default: the model's, else 0.05.",
            ),
            click.option(
                "--repeat-penalty", "--repetition-penalty", "repetition_penalty", type=float,
                callback=check_flag, default=1.0, metavar="R",
                help="Divide the logits of seen tokens. 1: off.",
            ),
            click.option(
                "--presence-penalty", type=float, default=0.0, metavar="P", callback=check_flag,
                help="Subtracted once from the logits of generated tokens.",
            ),
            click.option(
                "--frequency-penalty", type=float, default=0.0, metavar="P", callback=check_flag,
                help="Subtracted for each time a token was generated.",
            ),
            click.option(
                "-l", "--logit-bias", multiple=True, metavar="ID(+|-)BIAS",
                callback=check_biases,
                help="Change a token's logit: 15043-5. May be repeated.",
            ),
            click.option(
                "--seed", type=int, metavar="N", callback=check_flag,
                help="Seed. Default: random, shown with -v.",
            ),
            click.option(
                "--stop", multiple=True, metavar="TEXT", help="End before this. May be repeated."
            ),
            click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def sampling_params(
    file: ModelFile,
    flags: Mapping[str, Any],
    *,
    logprobs: int | None = None,
    form: StructuredOutputs | None = None,
) -> SamplingParams:
    """Return the parameters that the flags ask for, filled up by the model and the defaults.

    Raises ConfigError for a value out of range.
    """
    import secrets

    from capax.decoding.params import SamplingParams
    from capax.files.recommended import recommended_sampling

    values = DEFAULTS | recommended_sampling(file)
    values |= {name: flags[name] for name in DEFAULTS if flags[name] is not None}
    seed = flags["seed"]
    return SamplingParams(
        # -1 is how llama.cpp and Ollama say 'no limit'.
        max_tokens=None if flags["max_tokens"] == -1 else flags["max_tokens"],
        temperature=values["temperature"],
        top_k=int(values["top_k"]),
        top_p=values["top_p"],
        min_p=values["min_p"],
        repetition_penalty=flags["repetition_penalty"],
        presence_penalty=flags["presence_penalty"],
        frequency_penalty=flags["frequency_penalty"],
        logit_bias=dict(map(parse_bias, flags["logit_bias"])),
        seed=secrets.randbits(32) if seed is None else seed,
        stop=tuple(flags["stop"]),
        ignore_eos=flags["ignore_eos"],
        logprobs=logprobs,
        structured_outputs=form,
    )


def parse_bias(text: str) -> tuple[int, float]:
    """Read '15043-5' or '15043+0.5': token id and bias."""
    for sign in "+-":
        token, found, bias = text.partition(sign)
        if found and token.isdecimal():
            try:
                return int(token), float(sign + bias)
            except ValueError:
                break
    raise ConfigError(
        f"--logit-bias is {text!r:.60}; write a token id, a sign and a number: 42-1.5"
    )


def describe(params: SamplingParams) -> str:
    """Return the parameters in one line, as -v shows them."""
    shown = {
        name: getattr(params, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens")
    }
    return "sampling: " + json.dumps(shown)
