"""The whole comparison: collect, judge, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nextscale.compare.collect import Measured, Progress, collect
from nextscale.compare.folder import check_writable, earlier
from nextscale.compare.judge import Verdict, judge
from nextscale.compare.options import Options
from nextscale.compare.report import LISTING, write_report
from nextscale.plan.errors import ParityError


@dataclass(frozen=True)
class Comparison:
    """What was found, what it means, and where it is written."""

    measured: Measured
    verdicts: tuple[Verdict, ...]
    report: Path

    @property
    def held(self) -> bool:
        """Whether parity held for every bundle."""
        return all(verdict.held for verdict in self.verdicts)

    def check(self) -> None:
        """Raises :class:`~nextscale.plan.errors.ParityError`, whose exit status is 4, where parity did not hold."""
        if not self.held:
            found = "; ".join(verdict.sentence for verdict in self.verdicts if not verdict.held)
            notes = "".join(f"; {note}" for note in self.measured.notes)
            raise ParityError(f"{found}{notes}; see {self.report}")


def compare(
    bundles: Sequence[Path],
    model: Path,
    vae: Path,
    out: Path,
    options: Options | None = None,
    progress: Progress = lambda stage, done, total, what: None,
) -> Comparison:
    """Runs eager PyTorch in full, eager as each bundle plans it, and each bundle, and writes a report into ``out``.

    ``model`` and ``vae`` are the checkpoint files that the bundles were made of. ``progress(stage, done, total, what)``
    is called as it goes. A report is written whether parity holds or not; see :meth:`Comparison.check`. Raises a
    :class:`~nextscale.plan.errors.NextscaleError` where there is nothing to compare.
    """
    earlier(out, LISTING)  # refused before minutes are spent, not after
    check_writable(out)
    measured = collect(bundles, model, vae, options or Options(), progress)
    verdicts = judge(measured)
    return Comparison(measured, verdicts, write_report(out, measured, verdicts))
