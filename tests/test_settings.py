import pytest

from capax.errors import ConfigError
from capax.settings import flag_variable, preempt_every, unknown_variables, wanted_isa

SUPPORTED = ["avx2", "scalar"]


def test_an_unset_isa_leaves_the_choice_to_the_machine() -> None:
    assert wanted_isa(SUPPORTED, {}) is None
    assert wanted_isa(SUPPORTED, {"CAPAX_ISA": ""}) is None


def test_a_supported_isa_is_taken() -> None:
    assert wanted_isa(SUPPORTED, {"CAPAX_ISA": "scalar"}) == "scalar"


@pytest.mark.parametrize("name", ["avx512", "AVX2", "fast"])
def test_an_isa_this_machine_lacks_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"CAPAX_ISA is '{name}'.*avx2, scalar"):
        wanted_isa(SUPPORTED, {"CAPAX_ISA": name})


def test_flags_have_a_variable_of_their_name() -> None:
    assert flag_variable("ctx_size") == flag_variable("ctx-size") == "CAPAX_CTX_SIZE"


def test_misspelt_variables_are_found() -> None:
    environ = {"CAPAX_THREDS": "2", "CAPAX_THREADS": "2", "CAPAX_ISA": "avx2", "HOME": "/"}
    assert unknown_variables(["CAPAX_THREADS"], environ) == ["CAPAX_THREDS"]


def test_forced_preemption_is_a_number_of_steps_or_refused() -> None:
    name = "CAPAX_TEST_PREEMPT_EVERY"
    assert [preempt_every({}), preempt_every({name: ""}), preempt_every({name: " 7 "})] == [0, 0, 7]
    for value in ("-1", "x", "1.5", "9" * 30, "\u0663"):
        with pytest.raises(ConfigError, match=name):
            preempt_every({name: value})
    assert unknown_variables([], {name: "7"}) == []
