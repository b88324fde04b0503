"""``python -m nextscale.cli``: the command where its script is not on the path."""

from __future__ import annotations

from nextscale.cli.main import app

app()
