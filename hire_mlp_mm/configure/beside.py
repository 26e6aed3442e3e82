"""Write the files that belong to a config beside it: all of them, or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError

Write = Callable[[Path], Any]  # writes a file or a folder at the path that it is given


@dataclass
class Beside:
    """Collect the files that are to be written beside a config, each with what writes it."""

    config: Path
    writes: dict[Path, Write] = field(default_factory=dict)

    def path(self, ending: str) -> Path:
        """Name a file after the config, such as `my_config_train.json` for `_train.json`."""
        return self.config.with_name(self.config.stem + ending)

    def add(self, ending: str, write: Write) -> Path:
        """Add a file that `write` writes; return its path."""
        path = self.path(ending)
        self.writes[path] = write
        return path

    def add_coco(self, split: str, content: dict[str, Any]) -> Path:
        """Add a COCO file of a split."""
        text = json.dumps(content, ensure_ascii=False)
        return self.add(f"_{split}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def add_list(self, split: str, lines: Sequence[str]) -> Path:
        """Add a list of a split's images, a line each."""
        text = "".join(f"{line}\n" for line in lines)
        return self.add(f"_{split}.txt", lambda path: path.write_text(text, encoding="utf-8"))

    def refuse_existing(self) -> None:
        """Raise UserError where one of the files is there already, or their folder is not."""
        if self.config.suffix != ".py" or not self.config.parent.is_dir():
            raise UserError(f"--out {self.config}: expected a .py file in a folder that exists")
        for path in {self.config: None, **self.writes}:
            if path.exists():
                raise UserError(f"{path} exists; name another config with --out")

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the files; take all of them away again where the work with them fails."""
        self.refuse_existing()
        begun: list[Path] = []
        try:
            for path, write in self.writes.items():
                begun.append(path)
                write(path)
            yield
        except BaseException:
            for path in begun:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            raise
