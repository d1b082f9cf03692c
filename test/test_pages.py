"""The pages say what the code does: parameters, commands, examples, links."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowodom import __version__
from flowodom.cli import main
from flowodom.config import SessionConfig, parameters, to_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PARAMETERS = ROOT / "docs" / "parameters.md"


def parameters_page() -> str:
    """Returns docs/parameters.md as the configuration would have it."""
    lines = [
        "# Parameters",
        "",
        "In a file (`--config`, `--params-file`, `config_file:=`; `config/odometry.yaml` has every default), on the",
        "command line (`--set registration.points=800`), or as ROS parameters of the same names. Those marked live may",
        "change while the node runs.",
        "",
        "| name | default | unit | allowed | live | what |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for p in parameters(SessionConfig()):
        low, high = ("" if bound is None else f"{bound:g}" for bound in (p.low, p.high))
        bounds = ", ".join(p.choices) or (f"{low} to {high}" if high else f"from {low}" if low else "")
        default = str(p.value).lower() if p.kind is bool else str(p.value)
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{p.name}` | {shown} | {p.unit} | {bounds} | {'live' if p.live else ''} | {p.description} |")
    return re.sub(r" +\|", " |", "\n".join(lines)) + "\n"


def test_the_page_of_parameters_is_that_of_the_code() -> None:
    assert PARAMETERS.read_text(encoding="utf-8") == parameters_page(), "run make parameters"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not [name for name in names if f"({name})" not in index]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for command in set(re.findall(r"^flowodom (\w+)", "\n".join(blocks), flags=re.MULTILINE)):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
    capsys.readouterr()


def test_the_readme_s_example_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("TRACKING")


def test_every_dependency_has_its_reason() -> None:
    """Read from setup.py without running it."""
    call = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body[-1].value  # type: ignore[attr-defined]
    given = {word.arg: word.value for word in call.keywords}
    extras: dict[str, list[str]] = ast.literal_eval(given["extras_require"])
    wanted = sum(extras.values(), ast.literal_eval(given["install_requires"]))
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    names = [re.split(r"[<>=!]", requirement)[0] for requirement in wanted]
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_everybody_says_the_same_version() -> None:
    said = [re.search(r"<version>(.*)</version>", (ROOT / "package.xml").read_text(encoding="utf-8"))]
    said.append(re.search(r'version="(.*)"', (ROOT / "setup.py").read_text(encoding="utf-8")))
    said.append(re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert [match and match[1] for match in said] == [__version__] * 3


if __name__ == "__main__":
    PARAMETERS.write_text(parameters_page(), encoding="utf-8")
    (ROOT / "config" / "odometry.yaml").write_text(to_yaml(SessionConfig()), encoding="utf-8")
