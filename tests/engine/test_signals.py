"""An LLM in processes with many or few file descriptors, and with signals."""

from __future__ import annotations

from programs import cases, run

PROGRAMS = {
    "thousands-of-descriptors": """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
for _ in range(min(4096, hard) - 200): os.open(os.devnull, os.O_RDONLY)
right = answer("one")
assert renderer()._stdout.fileno() > 1023 and answer("one") == right
""",
    "sixty-four-descriptors": """
import resource
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
right = answer("one")
for _ in range(3):
    llm._template.close()
    assert answer("one") == right
with LLM(MODEL, backend="numpy", quiet=True) as other: assert other.chat_prompt(say("one")) == right
del other
assert len(os.listdir("/proc/self/fd")) <= before + 2
""",
    "signals-in-every-system-call": """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
right = answer("one")
assert llm.chat(say("one"), GREEDY).completion_tokens == 6
for _ in range(2):
    llm._template.close()
    assert answer("one") == right
signal.setitimer(signal.ITIMER_REAL, 0)
""",
    "a-parent-that-ignores-the-timers-signal": """
signal.signal(signal.SIGPROF, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
from ostinato.errors import TokenizerError
from ostinato.text.sandbox import Sandbox
try: Sandbox("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "x").render([{}])
except TokenizerError as e: assert "takes too long" in str(e), e
""",
    "a-parent-that-ignores-its-children": """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from ostinato.errors import TokenizerError
from ostinato.text.sandbox import Sandbox
try: Sandbox("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "x").render([{}])
except TokenizerError as e: assert "ignores SIGCHLD" in str(e), e
assert answer("one") == answer("one")
llm.close()
""",
    "ctrl-c-does-not-reach-the-renderer": """
signal.signal(signal.SIGINT, lambda *_: None)
right = answer("one")
os.kill(renderer()._process.pid, signal.SIGINT)
time.sleep(0.05)
assert answer("one") == right
""",
    "close-while-another-thread-renders": """
from ostinato.errors import TokenizerError
from ostinato.text.sandbox import Sandbox
box, said = Sandbox("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "x"), []
def render():
    try: box.render([{}])
    except TokenizerError as e: said.append(str(e))
thread = threading.Thread(target=render)
thread.start()
while box._child is None: time.sleep(0.001)
box.close(); thread.join()
assert "SIGKILL" in said[0], said
""",
}


@cases(PROGRAMS)
def test_programs(program: str) -> None:
    run(program)
