"""The demo's log: one JSON Lines file per day, one line per exchange."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TurnLog:
    """Appends exchanges to `folder/YYYY-MM-DD.jsonl`; images by their digest, and if asked for as files beside it."""

    folder: Path
    keeps_images: bool = False

    def __post_init__(self) -> None:
        """Make the folder. Raises OSError where that cannot be done, before anything was said."""
        (self.folder / "images" if self.keeps_images else self.folder).mkdir(parents=True, exist_ok=True)

    def add(self, images: Sequence[Path], **turn: Any) -> None:
        """Append an exchange, in one write, so that lines of several demos never mix."""
        now = datetime.now().astimezone()
        row = {"time": now.isoformat(timespec="seconds"), "images": [self._image(path) for path in images], **turn}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        file = os.open(self.folder / f"{now:%Y-%m-%d}.jsonl", flags, 0o600)
        try:
            os.write(file, line.encode(errors="replace"))
        finally:
            os.close(file)

    def _image(self, path: Path) -> dict[str, str]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not self.keeps_images:
            return {"sha256": digest}
        name = f"images/{digest}{path.suffix}"
        if not (self.folder / name).exists():
            shutil.copyfile(path, self.folder / name)
        return {"sha256": digest, "file": name}
