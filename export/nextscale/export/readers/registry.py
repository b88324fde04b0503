"""Every family's reader, and whose a transformer file is."""

from __future__ import annotations

from nextscale.export.readers import hart, infinity, var
from nextscale.export.readers.needs import Reader
from nextscale.export.state_dict import State

READERS: dict[str, Reader] = {"infinity": infinity, "hart": hart, "var": var}


def reader_of(state: State) -> Reader:
    """The reader that recognises a state dict; VAR's says what is lacking of one that none does."""
    return next((reader for reader in READERS.values() if reader.recognises(state)), READERS["var"])
