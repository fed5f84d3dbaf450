"""Templates that try to escape, loop, or eat the memory; the next render is always fine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from capax.errors import CapaxError, ConfigError, FileFormatError, SandboxError
from capax.files.chat_template import prepare_renderer, render_chat
from capax.files.template_helper import HELPER, WALL_SECONDS

MESSAGES = [{"role": "user", "content": "hi"}]
SOURCE = Path(__file__).parents[2] / "src"

# What each would print if it got through is in LEAKS.
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages.append.__self__.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '' | attr('__cla' ~ 'ss__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ ['']|groupby('__class__') }}",
    "{{ [('a',)]|sum(attribute='__class__') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ strftime_now.__globals__['os'] }}",
    "{{ strftime_now.__closure__ }}",
    "{{ range.__init__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ''.format.__self__.__class__ }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ '%s' | format(''.__class__) }}",
    "{{ ('{0.__class__}' | attr('format'))('') }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
    "{{ dict.__base__ }}",
    "{{ (1).__class__ }}",
    "{{ messages[0].values.__func__ }}",
    "{{ caller.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{{ loop.__class__ }}{% for x in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ config }}{{ request }}{{ environment }}{{ self.environment }}",
    "{{ __import__('os').getcwd() }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages.clear() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].pop('role') }}",
    "{% do messages.append(1) %}",
]
LEAKS = re.compile(
    r"<class|<built-in|<function|<module|<bound|<code|<jinja2|<Env|uid=|root:|object at 0x"
)


def assert_the_next_render_is_fine() -> None:
    assert render_chat("{{ messages[0].content }}!", MESSAGES) == "hi!"


@pytest.mark.parametrize("template", ESCAPES)
def test_no_escape_gets_through(template: str) -> None:
    try:
        text = render_chat(template, MESSAGES)
    except (SandboxError, FileFormatError) as error:
        text = str(error)
        assert "\n" not in text[:200]
    assert not LEAKS.search(text.replace("'<class", "")), text
    assert_the_next_render_is_fine()


BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}"
    "{% endfor %}",
    "string times number": "{{ 'a' * 10**9 }}",
    "list times number": "{{ [0] * 10**9 }}",
    "long range": "{{ range(10**9) | list }}",
    "power": "{{ 2 ** 10**9 }}",
    "power of powers": "{{ (9**9**5) ** 9**4 }}",
    "doubling": "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}"
    "{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "doubling a list": "{% set n = namespace(s=[1]) %}"
    "{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(64) }}",
    "wide format": "{{ '%1000000000d' % 1 }}",
    "wide format method": "{{ '{:1000000000d}'.format(1) }}",
    "wide filter": "{{ 'x' | center(10**9) }}",
    "wide indent": "{{ 'x\\n' * 1000 | indent(10**7) }}",
    "wide json": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "wide date": "{{ strftime_now('%1000000000Y') }}",
    "replace": "{{ ('a' * 10**5) | replace('a', 'b' * 10**5) }}",
    "replace method": "{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}",
    "join": "{{ range(99999) | join('a' * 10**6) }}",
    "batch": "{{ range(9) | batch(10**9, 0) | list }}",
    "slice": "{{ range(9) | slice(10**9) | list }}",
    "product": "{{ range(99999) | map('string') | map('center', 10**6) | join }}",
    "word wrap": "{{ ('a ' * 10**7) | wordwrap(1) }}",
    "urlize": "{{ ('http://a.b/(' * 10**6) | urlize }}",
    "striptags": "{{ ('<' * 10**7) | striptags }}",
    "huge literal": "{{ " + "9" * 100_000 + " }}",
    "number to string": "{{ (10 ** 10**6) | string | length }}",
    "deep brackets": "{{ " + "(" * 100_000 + ")" * 100_000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "many blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long chain": "{{ 1" + "+1" * 200_000 + " }}",
    "comparison chain": "{{ 1" + "<2" * 200_000 + " }}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}"
    "{% for j in range(999) %}{{ c.next() }}{% endfor %}{% endfor %}",
    "self join": "{% for a in range(9999) %}{% set x = messages * 9999 %}{{ x | length }}"
    "{% for b in x %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_every_bomb_is_stopped_in_bounded_time_and_the_next_render_is_fine(kind: str) -> None:
    start = time.monotonic()
    text = ""
    with contextlib.suppress(SandboxError, FileFormatError):
        text = render_chat(BOMBS[kind], MESSAGES)
    assert len(text) <= 16 << 20  # some are harmless after all, within the limits
    assert time.monotonic() - start < WALL_SECONDS + 1
    assert_the_next_render_is_fine()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nested loops", "computes for more than 1 s"),
        ("string times number", "256 MiB"),
        ("long range", "Range too big"),
        ("recursive macro", "recurses too deeply"),
        ("loops that write", "16,777,216 characters"),
    ],
)
def test_the_error_says_which_limit_was_met(kind: str, message: str) -> None:
    with pytest.raises(SandboxError, match=message):
        render_chat(BOMBS[kind], MESSAGES)


def test_memory_of_this_process_is_not_touched() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SandboxError):
        render_chat(BOMBS["doubling"], MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_one_helper_serves_many_renders_and_is_replaced_when_it_dies() -> None:
    assert_the_next_render_is_fine()
    first = HELPER._process
    assert_the_next_render_is_fine()
    assert HELPER._process is first
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert_the_next_render_is_fine()
    assert HELPER._process is not first


def test_threads_share_the_helper() -> None:
    results: list[str] = []

    def work(n: int) -> None:
        for i in range(20):
            text = f"{n}-{i}"
            results.append(
                render_chat("{{ messages[0].content }}", [{"role": "u", "content": text}])
            )
            if i == n:
                with pytest.raises(CapaxError):
                    render_chat("{{ 'a' * 10**9 }}", MESSAGES)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == sorted(f"{n}-{i}" for n in range(4) for i in range(20))


def test_one_template_cannot_change_another() -> None:
    poison = (
        "{% set messages = 1 %}{% set raise_exception = 1 %}"
        "{% macro strftime_now() %}{% endmacro %}{% set range = 1 %}"
    )
    render_chat(poison, MESSAGES)
    for attempt in ("{{ messages.append(1) }}", "{% set range.x = 1 %}"):
        with pytest.raises(CapaxError):
            render_chat(attempt, MESSAGES)
    assert render_chat("{{ range(3) | list }}{{ messages | length }}", MESSAGES) == "[0, 1, 2]1"


FORKED = """
import os
from capax.files.chat_template import render_chat
render = lambda: render_chat("{{ messages[0].content }}!", [{"role": "user", "content": "hi"}])
assert render() == "hi!"
child = os.fork()
texts = [render() for _ in range(50)]
assert texts == ["hi!"] * 50
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert render() == "hi!"
"""


def test_a_forked_process_gets_its_own_helper() -> None:
    environment = {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", FORKED], env=environment, timeout=60, check=False)
    assert done.returncode == 0


def test_the_helper_can_be_started_ahead() -> None:
    HELPER.close()
    prepare_renderer("{{ messages[0].content }} of an unknown model")
    assert HELPER._process is not None
    assert_the_next_render_is_fine()


def test_the_helper_has_no_environment_and_few_descriptors() -> None:
    assert_the_next_render_is_fine()
    process = HELPER._process
    assert process is not None
    root = Path(f"/proc/{process.pid}")
    assert (root / "environ").read_bytes() in (b"", b"LC_CTYPE=C.UTF-8\0")
    assert len(list((root / "fd").iterdir())) <= 4
    limits = (root / "limits").read_text()
    assert re.search(r"Max address space +268435456 +268435456", limits)
    assert re.search(r"Max file size +0 +0", limits)


def test_too_much_input_is_refused_before_the_helper_sees_it() -> None:
    with pytest.raises(ConfigError, match="as JSON"):
        render_chat("x{{ 1 }}", [{"role": "user", "content": "a" * (17 << 20)}])


def test_there_is_one_constructor_of_environments() -> None:
    """An environment made elsewhere would have neither the sandbox nor the limits."""
    calls = [
        (str(path.relative_to(SOURCE)), match.group())
        for path in SOURCE.rglob("*.py")
        for match in re.finditer(
            r"\b(?!DefaultFloat)\w*Environment\(|\bjinja2\.Template\(|(?<!\w)Template\(",
            path.read_text(),
        )
    ]
    assert sorted(calls) == [
        ("capax/files/page.py", "Environment("),  # of our constants, with escaping
        ("capax/files/template_engine.py", "ImmutableSandboxedEnvironment("),
    ]
