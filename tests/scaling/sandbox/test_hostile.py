"""Programs that want out, or a pass they have not earned. None may get either."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from capax.errors import ConfigError, SandboxError
from capax.scaling.sandbox import Limits, Result, check_isolation, process, run_tests

try:
    check_isolation()
    MISSING = ""
except SandboxError as error:
    MISSING = str(error)

needs_isolation = pytest.mark.skipif(bool(MISSING), reason=MISSING or "isolated")
LIMITS = Limits(wall_s=5.0, cpu_s=2, memory_nbytes=256 << 20, tmp_nbytes=1 << 20)
TESTS = """
def check(candidate):
    for i in range(20):
        assert candidate(i) == 3 * i + 17, "wrong"
"""
RIGHT = "def f(i): return 3 * i + 17"


def run(program: str, tests: str = TESTS, limits: Limits = LIMITS) -> Result:
    return run_tests(program, tests, "f", limits=limits)


@needs_isolation
def test_right_and_wrong_programs() -> None:
    assert run(RIGHT)[0::2] == ("passed", 20)
    assert run("def f(i): return 3 * i + 18").kind == "failed"
    assert run("def f(i): return 1 // i").kind == "error"
    assert run("def f(i): return (").kind == "error"
    assert run("def g(i): return 3 * i + 17").kind == "error"


CHEATS = {
    "exit 0 at once": "import os; os._exit(0)",
    "exit 0 when called": "import os\ndef f(i): os._exit(0)",
    "sys.exit": "import sys\ndef f(i): sys.exit(0)",
    "raise SystemExit at import": "raise SystemExit(0)",
    "equal to all": "class A:\n  def __eq__(s, o): return True\n  __ne__ = lambda s, o: False\n"
    "def f(i): return A()",
    "equal to all, an int": "class A(int):\n  def __eq__(s, o): return True\n  __hash__ = None\n"
    "def f(i): return A(5)",
    "equal to all, a str": "class A(str):\n  def __eq__(s, o): return True\ndef f(i): return A()",
    "patched assert": "import builtins\nbuiltins.AssertionError = None\ndef f(i): return 1",
    "patched comparison": "import operator, builtins\noperator.eq = lambda a, b: True\n"
    "builtins.range = lambda n: []\nbuiltins.all = lambda x: True\ndef f(i): return 1",
    "patched json": "import sys\njson = sys.modules['json']\n"
    'json.dumps = lambda *a: \'{"kind": "passed"}\'\ndef f(i): return 1',
    "patched values": "import sys\nsys.modules['values'].dumps = lambda v: b'true\\n'\n"
    "def f(i): return 1",
    "trace": "import sys\nsys.settrace(lambda *a: None)\ndef f(i): return 1",
    "frames": "import sys\ndef f(i):\n  g = sys._getframe()\n  while g:\n"
    "    for v in list(g.f_locals.values()) + list(g.f_globals.values()):\n"
    "      if isinstance(v, dict) and 'tests' in v: return 3 * i + 17\n"
    "    g = g.f_back\n  return 1",
    "objects": "import gc\ndef f(i):\n  for o in gc.get_objects():\n"
    "    if isinstance(o, dict) and 'wrong' in map(str, list(o.values())[:9]): return 3 * i + 17\n",
    "forged answers": "import os\nfor d in range(3, 32):\n  try: os.write(d, "
    'b\'{"tuple": ["ready"]}\\n\' + b\'{"tuple": ["a", "value", 17]}\\n\' * 50)\n'
    "  except OSError: pass\ndef f(i): return 1",
    "forged verdict": "import os\nfor d in range(32):\n  try: os.write(d, "
    'b\'{"kind": "passed", "detail": "", "calls": 20}\')\n  except OSError: pass\n'
    "def f(i): return 1",
    "raised assertion": "def f(i): raise AssertionError",
    "raised keyboard interrupt": "def f(i): raise KeyboardInterrupt",
    "raised generator exit": "def f(i): raise GeneratorExit",
    "base exception of its own": "class E(BaseException):\n  def __str__(s): raise s\n"
    "def f(i): raise E",
    "abort": "import os\ndef f(i): os.abort()",
    "deep value": "def f(i):\n  a = []\n  for _ in range(10**5): a = [a]\n  return a",
    "endless value": "def f(i):\n  a = []\n  a.append(a)\n  return a",
    "large value": "def f(i): return 'a' * (100 << 20)",
    "large number": "def f(i): return 1 << (10 ** 7)",
    "surrogate": "def f(i): return '\\ud800'",
    "closed files": "import os\nos.closerange(0, 64)\ndef f(i): return 1",
    "segmentation fault": "import ctypes\ndef f(i): ctypes.string_at(0)",
}


@needs_isolation
@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str) -> None:
    assert run(CHEATS[name]).kind in ("failed", "error", "crashed", "memory"), name


BOMBS = {
    "endless loop": "def f(i):\n  while True: pass",
    "endless loop at import": "while True: pass",
    "sleep": "import time\ntime.sleep(100)",
    "ignored signals": "import signal\nfor s in range(1, 65):\n"
    "  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"
    "while True: pass",
    "swallowed interrupts": "def f(i):\n  while True:\n    try:\n      while True: pass\n"
    "    except BaseException: pass",
}


@needs_isolation
@pytest.mark.parametrize("name", BOMBS)
def test_endless_programs_are_ended(name: str) -> None:
    limits = Limits(wall_s=1.0, cpu_s=1, memory_nbytes=256 << 20)
    assert run(BOMBS[name], limits=limits).kind == "timeout"


@needs_isolation
def test_memory_is_bounded() -> None:
    assert run("def f(i): return len([0] * 10**10)").kind == "memory"
    assert run("a = bytearray(10**10)").kind == "memory"


# Each must raise OSError (or find nothing); then, and only then, the right answer is given.
REACHES = {
    "fork": "os.fork()",
    "program": "__import__('subprocess').run(['/bin/true'])",
    "exec": "os.execv(sys.executable, ['python'])",
    "spawn": "os.posix_spawn('/bin/sh', ['sh'], {})",
    "system": "(_ for _ in ()).throw(OSError) if os.system('true') else 1",
    "loopback": "__import__('socket').create_connection(('127.0.0.1', PORT), 1)",
    "unix socket": "__import__('socket').socket(__import__('socket').AF_UNIX)",
    "password file": "open('/etc/passwd')",
    "home": "os.listdir('/root')",
    "processes": "os.listdir('/proc/self')",
    "devices": "open('/dev/null')",
    "this file": "open(THIS)",
    "list root": "None if set(os.listdir('/')) - {'lib', 'lib64', 'usr', 'tmp', TOP} "
    "else (_ for _ in ()).throw(OSError)",
    "write library": "open(os.__file__, 'a')",
    "write root": "open('/a', 'w')",
    "write library folder": "open(os.path.dirname(os.__file__) + '/a', 'w')",
    "fill tmp": "open('/tmp/a', 'wb').write(bytes(4 << 20))",
    "links": "os.symlink('/etc', '/tmp/etc')",
    "kill": "os.kill(1, 9)",
    "kill all": "os.kill(-1, 9)",
    "limits": "__import__('resource').setrlimit(0, (100, 100))",
    "root again": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "nice": "os.setpriority(0, 0, -20)",
    "ptrace": "C(101, 16, 1, 0, 0)",
    "mount": "C(165, b'tmpfs', b'/tmp', b'tmpfs', 0, 0)",
    "unshare": "C(272, 0x10000000)",
    "namespace": "C(308, 3, 0)",
    "bpf": "C(321, 0, 0, 0)",
    "io_uring": "C(425, 1, 0)",
    "keyring": "C(250, 0, 0)",
    "process memory": "C(310, 1, 0, 0, 0, 0, 0)",
    "raw fork": "C(57)",
    "raw vfork": "C(58)",
    "clone3": "C(435, 0, 0)",
    "prctl": "C(157, 4, 1)",
    "userfaultfd": "C(323, 0)",
    "memfd": "C(319, b'a', 0)",
    "open_by_handle_at": "C(304, 0, 0, 0)",
}
REACH = """
import ctypes, os, sys
THIS, PORT, TOP = {this!r}, {port}, {top!r}
def C(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def f(i):
    try:
        {expression}
    except (OSError, ValueError):
        return 3 * i + 17
    return "reached"
"""


@needs_isolation
@pytest.mark.parametrize("name", REACHES)
def test_nothing_of_the_machine_is_in_reach(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = REACH.format(
            this=str(Path(__file__).resolve()),
            port=server.getsockname()[1],
            top=Path(os.__file__).parts[1],
            expression=REACHES[name],
        )
        result = run(program)
    assert result.passed, (name, result)


@needs_isolation
def test_fork_bombs_and_threads() -> None:
    bomb = "import os\ndef f(i):\n  while True:\n    try: os.fork()\n    except OSError: return 1"
    assert run(bomb).kind == "failed"
    threads = (
        "import threading, time\ndef f(i):\n  try:\n    for _ in range(10**4):\n"
        "      threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "  except (RuntimeError, MemoryError): return 1"
    )
    assert not run(threads).passed
    one = (
        "import threading\ndef f(i):\n  got = []\n"
        "  t = threading.Thread(target=lambda: got.append(3 * i + 17))\n  t.start(); t.join()\n"
        "  return got[0]"
    )
    assert run(one).passed


@needs_isolation
def test_output_goes_nowhere() -> None:
    assert run("def f(i):\n  print('a' * 10**7)\n  return 3 * i + 17").passed
    assert run("import sys\nsys.stdout.close()\ndef f(i): return 3 * i + 17").passed


@needs_isolation
def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hush")
    assert run(
        "import os\ndef f(i): return 3 * i + 17 if 'SECRET_KEY' not in os.environ else 0"
    ).passed


@needs_isolation
def test_nothing_is_left_behind() -> None:
    def children() -> str:
        return subprocess.run(
            ["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True
        ).stdout

    descriptors = len(os.listdir("/proc/self/fd"))
    marker = f"left_{os.getpid()}"
    run(f"{marker} = 1\nwhile True: pass", limits=Limits(wall_s=0.5))
    run("import os\ndef f(i): os._exit(0)")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and str(process._INSIDE) in children():
        threading.Event().wait(0.05)
    assert str(process._INSIDE) not in children()


@needs_isolation
def test_hostile_tests_are_isolated_as_well() -> None:
    assert run(RIGHT, "import os\nos._exit(0)").kind == "crashed"
    assert run(RIGHT, "open('/etc/passwd')").kind == "error"
    assert run(RIGHT, "import os\nos.fork()").kind == "error"
    assert run(RIGHT, "while True: pass", Limits(wall_s=0.7)).kind == "timeout"
    assert run(RIGHT, "pass")[:2] == ("failed", "the tests never called the function")


@needs_isolation
def test_exceptions_reach_the_tests_as_what_they_are() -> None:
    tests = (
        "try:\n  f(-1)\nexcept ValueError as e:\n  assert 'negative' in str(e)\n"
        "else:\n  raise AssertionError"
    )
    assert run("def f(i): raise ValueError('negative')", tests).passed
    assert run("def f(i): raise KeyError('negative')", tests).kind == "error"
    assert run("def f(i): return 1", tests).kind == "failed"


@needs_isolation
def test_values_keep_their_types() -> None:
    echo = "def f(*a, **k): return a[0] if a else k"
    tests = (
        "for v in (None, True, 0, -1, 2**80, -2**80, 0.1, -0.0, float('inf'), 1j, "
        "'a\\n\\u20ac', b'a', [], [1, (2, [3])], (), (1,), {1, 2}, frozenset((1,)), {}, "
        "{1: [2], (3, 4): {5}}):\n"
        "  got = f(v)\n  assert got == v and type(got) is type(v) and repr(got) == repr(v)\n"
        "assert f(a=1, b=[2]) == {'a': 1, 'b': [2]}"
    )
    assert run(echo, tests).passed
    assert run("def f(i): return map(str, i)", "assert list(f([1])) == ['1']").kind == "error"


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="wall_s is 0 "):
        Limits(wall_s=0)
    with pytest.raises(ConfigError, match="memory_nbytes"):
        Limits(memory_nbytes=1)


def test_without_isolation_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Negative control: a sandbox that cannot lock down says so, and the program is not run."""
    inside = Path(sys.modules["capax.scaling.sandbox.process"].__file__ or "").parent
    for name in ("inside.py", "values.py", "lockdown.py"):
        text = (inside / name).read_text()
        broken = text.replace(
            "SYS_PIVOT_ROOT, SYS_LANDLOCK = 155, (444,", "SYS_LANDLOCK = 155, (9999,"
        )
        (tmp_path / name).write_text(broken)
    monkeypatch.setattr("capax.scaling.sandbox.process._INSIDE", tmp_path / "inside.py")
    with pytest.raises(SandboxError, match="not run, because it cannot be isolated"):
        run(RIGHT)
