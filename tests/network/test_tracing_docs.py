from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tracing.md"


def test_the_examples_of_the_page_work_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, object] = {"__name__": "net"}
    for example in examples:
        exec(compile(example, "net.py", "exec"), names)
    said = re.search(r"print\(error\)  # (.*)", examples[-1])
    assert said is not None
    assert capsys.readouterr().out.splitlines() == ["stem 16", "block.conv1 16", said[1]]
    assert (tmp_path / "classifier.safetensors").is_file()
