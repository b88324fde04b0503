"""Fetching a published checkpoint from a model hub repository, into a plain folder (no cache of links)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nextscale.export.published import SUFFIXES, Schedule, published_places, published_stems
from nextscale.export.shards import AVERAGED, INDEXES
from nextscale.export.shards import SUFFIXES as FOLDER_SUFFIXES
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Model, Tokenizer

CONFIG = "config.json"


@dataclass(frozen=True)
class Fetched:
    """The files of a checkpoint, and the repository and full commit that they come from."""

    model: Path
    vae: Path
    repo: str
    revision: str


def fetch(
    repo: str,
    revision: str | None,
    model: Model,
    tokenizer: Tokenizer,
    folder: Path,
    bars: bool = False,
    schedule: Schedule = (),
) -> Fetched:
    """Downloads that model and its tokenizer from ``repo`` at ``revision`` (None: its main branch) into ``folder``.

    A file that is there already and unchanged is not fetched again. ``bars`` lets the hub's client draw its own
    progress on stderr. Raises :class:`InputError` for a repository, revision or file that does not exist,
    :class:`EnvironmentProblem` where the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not bars:
        disable_progress_bars()
    folder = Path(folder)
    # The hub's client lets the errors of its HTTP library through; its own HTTP error is derived from their base.
    hub_errors: tuple[Any, ...] = (OSError, HFValidationError, *HfHubHTTPError.__bases__)
    try:
        info = HfApi().model_info(repo, revision=revision)
        listed = [entry.rfilename for entry in info.siblings or ()]
        chosen = choose(repo, listed, model, tokenizer, schedule)
        commit = info.sha or revision
        for name in chosen.files:
            hf_hub_download(repo, name, revision=commit, local_dir=folder)
    except hub_errors as error:
        raise _sentence(error, repo, revision, published_stems(model, tokenizer, schedule), folder) from error
    return Fetched(folder / chosen.model, folder / chosen.vae, repo, str(commit))


@dataclass(frozen=True)
class Chosen:
    """What of a repository makes the checkpoint: where its two parts are, and all files to fetch."""

    model: str
    vae: str
    files: list[str]


def choose(repo: str, files: Sequence[str], model: Model, tokenizer: Tokenizer, schedule: Schedule = ()) -> Chosen:
    """Transformer, tokenizer, and a config beside the transformer or in its folder.

    Safetensors are preferred to other files. Raises :class:`InputError` where a part is missing or is there twice.
    """
    places = published_places(model, tokenizer, schedule)
    parts = [_folder(repo, files, p.stem) if p.folder else [_one(repo, files, p.stem)] for p in places]
    roots = [str(PurePosixPath(part[0]).parent) if p.folder else part[0] for p, part in zip(places, parts, strict=True)]
    config = str(PurePosixPath(parts[0][0]).with_name(CONFIG))
    beside = [config] if config in files and config not in parts[0] else []
    return Chosen(roots[0], roots[1], [*parts[0], *parts[1], *beside])


def _folder(repo: str, files: Sequence[str], stem: str) -> list[str]:
    """The weights of a folder of that name, with their index and config; averaged ones where they are there."""
    inside = [PurePosixPath(name) for name in files if PurePosixPath(name).parent.name == stem]
    if averaged := [path for path in inside if path.name == AVERAGED]:
        weights = averaged
    else:
        kinds = ([p for p in inside if p.suffix == suffix] for suffix in FOLDER_SUFFIXES)
        weights = next(filter(None, kinds), [])
    if not weights:
        raise InputError(
            f"{repo} has no folder {stem}/ with weights, which the recipe asks for: give another recipe, or the files "
            "with --model and --vae"
        )
    beside = [path for path in inside if path.name == CONFIG or path.name in INDEXES]
    return [str(path) for path in sorted({*weights, *beside})]


def _one(repo: str, files: Sequence[str], stem: str) -> str:
    for suffix in SUFFIXES:
        found = [name for name in files if PurePosixPath(name).name == stem + suffix]
        if len(found) > 1:
            raise InputError(
                f"{repo} has several files {stem}{suffix} ({', '.join(sorted(found))}): fetch the one that you mean, "
                "and give it with --model or --vae"
            )
        if found:
            return found[0]
    weights = sorted(name for name in files if name.endswith(SUFFIXES))
    raise InputError(
        f"{repo} has no {' or '.join(stem + suffix for suffix in SUFFIXES)}, which the recipe asks for "
        f"(it has {', '.join(weights[:8]) or 'no weights'}): give another recipe, or the files with --model and --vae"
    )


def _sentence(
    error: Exception, repo: str, revision: str | None, stems: Sequence[str], folder: Path
) -> InputError | EnvironmentProblem:
    """What went wrong at the hub, and what to do."""
    from huggingface_hub import errors

    at = repo + (f" at {revision}" if revision else "")
    match error:
        case errors.HFValidationError():
            return InputError(f"{repo!r} names no repository: give it as OWNER/NAME, for example FoundationVision/var")
        case errors.RevisionNotFoundError():
            return InputError(f"{repo} has no revision {revision!r}: give a branch, a tag or a commit of it")
        case errors.GatedRepoError():
            return InputError(f"{repo} asks for its conditions to be accepted: do so on its page, then `hf auth login`")
        case errors.RepositoryNotFoundError():
            return InputError(f"{repo} does not exist, or is private and `hf auth login` was not run: check the name")
    there = [path for stem in stems for path in (folder / f"{stem}{suffix}" for suffix in SUFFIXES) if path.is_file()]
    files = f"the files fetched before, {' and '.join(str(p) for p in there)}," if len(there) > 1 else "local files"
    reason = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else _first_line(error)
    return EnvironmentProblem(f"{at} cannot be fetched ({reason}): go online, or give {files} with --model and --vae")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
