"""``nextscale inspect``: what a bundle is, without loading a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.options import BundleFolder, Json

if TYPE_CHECKING:
    from nextscale.runtime.bundle import Bundle
    from nextscale.runtime.manifest import Source
    from nextscale.runtime.targets.manifest import Target


def inspect(
    bundle: BundleFolder,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file and compare with the manifest.")] = False,
    images: Annotated[int, typer.Option(min=1, help="Pictures in a pass, for the memory.")] = 1,
    json: Json = False,
) -> None:
    """Say what a bundle is: recipe, origin, graphs, files, targets, memory by cause, what was verified.

    \b
    nextscale inspect engines/var-d16
    nextscale inspect engines/var-d16 --verify

    Opens no graph. Names, kinds and lengths of the bundle's files are always
    checked against the manifest, their hashes with --verify.
    """
    from nextscale.runtime.bundle import open_bundle

    opened = open_bundle(bundle, verify="full" if verify else "size")
    if json:
        from nextscale.cli.output import print_json

        print_json(_report(opened, verify, images))
    else:
        _print(opened, verify, images)


def _print(opened: Bundle, verify: bool, images: int) -> None:
    from nextscale.cli.output import print_table, say, size_text
    from nextscale.plan.tables import kept_text, memory_table

    manifest, plan = opened.manifest, opened.manifest.plan
    model = plan.model()
    say(f"{opened.folder}")
    say(f"recipe     {manifest.recipe.name} version {manifest.recipe.version}, {manifest.precision}")
    say(f"model      depth {model.depth}, width {model.width}, {model.classes} classes, {_pixels(plan.image_size)} px")
    for method in plan.methods:
        say(f"method     {method}")
    say(f"defaults   {', '.join(f'{name} {value:g}' for name, value in plan.defaults)}, {_top_k(opened)}")
    say(f"source     {_origin(manifest.source)}")
    if manifest.classes:
        say(f"classes    {', '.join(manifest.classes)}")
    say(f"made with  {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    say(f"sha256     {opened.digest}")
    rows = []
    for graph in manifest.graphs:
        step = plan.steps[graph.step] if graph.step is not None else None
        grid = f"{step.grid[0]}×{step.grid[1]}" if step else ""
        checks = [v for v in manifest.verified if v.graph == graph.name]
        worst = max((v.max_error for v in checks if v.max_error is not None), default=None)
        error = "" if worst is None else f"{worst:.1e}"
        cells = (grid, str(step.tokens_in) if step else "", kept_text(step) if step else "")
        rows.append((graph.name, *cells, size_text(manifest.files[graph.file].size), error))
    print_table(
        ("graph", "grid", "tokens", "kept", "file", "differs by"), rows, (False, True, True, True, True, True), "graphs"
    )
    files = [
        (name, size_text(file.size), file.sha256[:16], "hash matches" if verify else "length matches")
        for name, file in manifest.files.items()
    ]
    print_table(("file", "size", "sha256", "checked"), files, (False, True, False, False), "files")
    _print_targets(opened)
    causes = memory_table(plan, images, manifest.precision)
    print_table(causes.columns, causes.rows, causes.numeric, f"memory for {images} at once")


def _print_targets(opened: Bundle) -> None:
    from nextscale.cli.output import print_table, say, size_text
    from nextscale.runtime.backends.packed.target import packed_targets
    from nextscale.runtime.targets.folder import targets_of

    rows = []
    for folder, packed in packed_targets(opened).items():
        if isinstance(packed, str):
            say(f"target     {packed}")
            continue
        said = ("any", "weights packed", str(len(packed.graphs)), size_text(packed.size), "")
        rows.append((folder.name, packed.library_version, *said))
    for folder, target in targets_of(opened).items():
        if isinstance(target, str):
            say(f"target     {target}")
            continue
        settings = f"weights {target.weights}, restore {target.restore}"
        size = size_text(sum(engine.size for engine in target.engines))
        batch = ",".join(map(str, target.batch_sizes))
        scratch = _scratch(target)
        need = "the card tells" if scratch is None else size_text(scratch)
        rows.append((folder.name, target.library_version, batch, settings, str(len(target.engines)), size, need))
    if rows:
        numeric = (False, False, False, False, True, True, True)
        columns = ("target", "built by", "batch", "settings", "engines", "size", "scratch")
        print_table(columns, rows, numeric, "targets")


def _targets(opened: Bundle) -> list[dict[str, Any]]:
    from nextscale.runtime import strict
    from nextscale.runtime.backends.packed.target import packed_targets
    from nextscale.runtime.targets.folder import targets_of

    found: list[dict[str, Any]] = []
    for folder, packed in packed_targets(opened).items():
        if isinstance(packed, str):
            found.append({"folder": str(folder), "problem": packed})
            continue
        of = {"flavor": packed.flavor, "target": packed.instructions, "library_version": packed.library_version}
        found.append({"folder": str(folder), "bytes": packed.size, **of, "precision": packed.precision})
    for folder, target in targets_of(opened).items():
        if isinstance(target, str):
            found.append({"folder": str(folder), "problem": target})
            continue
        size = sum(engine.size for engine in target.engines)
        sizes = {"bytes": size, "scratch_bytes": _scratch(target)}
        found.append({"folder": str(folder), **sizes, **strict.write(target.settings)})
    return found


def _scratch(target: Target) -> int | None:
    """What a slot's engines need while they run, the largest of them; None where only the card can tell."""
    needs = [max(engine.scratch.values()) for engine in target.engines if engine.scratch is not None]
    return max(needs) if len(needs) == len(target.engines) else None


def _report(opened: Bundle, verify: bool, images: int) -> dict[str, Any]:
    from nextscale.plan.cost import memory
    from nextscale.runtime.manifest import to_json

    data = to_json(opened.manifest)
    for part in ("graphs", "plan", "weights"):  # the manifest itself has them
        data.pop(part)
    return {
        "folder": str(opened.folder),
        "sha256": opened.digest,
        "hashes_checked": verify,
        "targets": _targets(opened),
        "graphs": [graph.name for graph in opened.manifest.graphs],
        "bytes": sum(file.size for file in opened.manifest.files.values()),
        "memory": {"images": images, "bytes": memory(opened.manifest.plan, images, opened.manifest.precision)},
        **data,
    }


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _top_k(opened: Bundle) -> str:
    found = {step.sampling.top_k for step in opened.manifest.plan.steps if step.sampling is not None}
    return "top_k " + ", ".join(str(k) if k else "all" for k in sorted(found))


def _origin(source: Source) -> str:
    files = ", ".join(f"{file.name} ({file.sha256[:12]})" for file in source.files)
    at = f" of {source.repo} at {source.revision}" if source.repo else ""
    return f"{files}{at}" + (f", licence {source.licence}" if source.licence else "")
