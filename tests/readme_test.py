"""What the README says is true: its layout, its example task, its commands' flags."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_layout_lists_every_module():
    listed = set(re.findall(r"^      (\w+(?:\.py|/)) ", README, re.MULTILINE))
    package = ROOT / "star_jax"
    there = {p.name for p in package.glob("*.py") if p.name != "__init__.py"}
    there |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert listed == there


def test_the_example_task_works_and_is_as_short_as_it_says():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 55
    scope = {"__name__": "readme_task"}
    exec(compile(code, "README.md", "exec", dont_inherit=True), scope)
    task = scope["Parity"](bits=6)
    from star_jax.tokenizers.simple import SymbolTokenizer

    words = SymbolTokenizer(task.symbols)
    train, dev = task.problems("train"), task.problems("dev")
    assert not {p.id for p in train} & {p.id for p in dev} and len(train) + len(dev) == 64
    for problem in dev:
        text = task.reference(problem)
        assert task.grade(problem, task.parse(text))
        assert words.decode(words.encode(task.render(problem, hint=True) + text)) == task.render(problem, True) + text
        assert len(words.encode(text)) + 1 <= task.max_new_tokens
    assert task.parse("1 odd\n") is None


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@|TODO", README)
    for path in [*ROOT.glob("configs/*.py"), *ROOT.glob("tests/benchmarks/*.py")]:
        assert "TODO" not in path.read_text(encoding="utf-8"), path
