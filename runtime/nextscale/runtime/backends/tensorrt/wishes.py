"""What a build is to be: the GPUs, and the settings of a target, from what a caller wishes for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from nextscale.plan.errors import InputError
from nextscale.plan.limits import limits
from nextscale.plugins.kernel import ARCHITECTURE
from nextscale.runtime.backends.tensorrt.library import LACKING, PRECISIONS, Library
from nextscale.runtime.backends.tensorrt.lift import external_weights, read_graph
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import WEIGHTS_FILE
from nextscale.runtime.targets.command import default_restore, runs_plugin
from nextscale.runtime.targets.manifest import Plugin, Settings, check, check_target_name, make_target


@dataclass(frozen=True)
class Wishes:
    """What a caller chooses. ``restore`` None is the plugin where flavour and GPU take it, else the function.

    ``tf32`` lets float32 products round their factors to 10 bits of mantissa: faster, and no longer float32.
    """

    batch_sizes: tuple[int, ...] = (1,)
    weights: str = "inputs"
    restore: str | None = None
    optimization_level: int = 3
    tf32: bool = False


@dataclass(frozen=True)
class Gpu:
    """The GPU of this machine, and its compute capability as a target's name."""

    name: str
    sm: str


def this_gpu() -> Gpu:
    """Raises :class:`BackendError` where there is none, or no way to ask."""
    from nextscale.runtime.backends.cuda import open_device

    device = open_device()
    return Gpu(device.name, device.sm)


def choose_targets(library: Library, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The targets to build for; asked for none, the GPU of this machine.

    Raises :class:`InputError` for what the flavour does not build.
    """
    if (known := library.targets) is None:
        try:
            here = this_gpu()
        except BackendError as error:
            found = re.split(r"[.;]\s", str(error))[0]  # its own advice is for those who have a GPU
            raise BackendError(
                f"the flavour {library.flavor} was asked for, which builds on the GPU that it builds for, and here is "
                f"none that can be used ({found}); on a machine without a GPU build with --flavor tensorrt-rtx"
            ) from error
        if odd := [target for target in asked if target != here.sm]:
            raise InputError(
                f"the flavour {library.flavor} builds for the GPU that it runs on, here {here.name} ({here.sm}), not "
                f"for {', '.join(odd)}: build there, or with --flavor tensorrt-rtx"
            )
        return (here.sm,)
    if not asked:
        try:
            asked = (this_gpu().sm,)
        except BackendError as error:
            raise InputError(
                f"name the GPUs to build for with --target, of {', '.join(known)}: CUDA finds none in this machine"
            ) from error
    if odd := [target for target in asked if target not in known]:
        notes = [LACKING[target] for target in odd if target in LACKING]
        notes += [] if all(re.fullmatch("sm[0-9]+", target) for target in odd) else ["compute capability 8.6 is sm86"]
        why = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(
            f"{library.flavor} {library.version} builds for {', '.join(known)}, not for {', '.join(odd)}{why}; "
            "the flavour tensorrt builds for any NVIDIA GPU, on that GPU"
        )
    if len(set(asked)) != len(asked):
        raise InputError(f"a target stands twice in {','.join(asked)}")
    return asked


def settings_for(bundle: Bundle, library: Library, target: str, wishes: Wishes) -> Settings:
    """What a target of ``bundle`` is to be. Raises :class:`InputError` for what cannot be wished for."""
    check_target_name(target)
    if bundle.manifest.precision not in PRECISIONS:
        raise InputError(
            f"{bundle.folder} is in {bundle.manifest.precision}, which {library.flavor} does not build: export one in "
            f"{' or '.join(PRECISIONS)}"
        )
    restore = wishes.restore or default_restore(library.flavor, target)
    if restore == "plugin" and not library.takes_plugins:
        raise InputError(
            f"{library.flavor} takes no plugins: give --restore function, or build with --flavor tensorrt on the GPU"
        )
    if restore == "plugin" and not runs_plugin(target):
        raise InputError(
            f"the plugin's kernel needs a GPU of {ARCHITECTURE.replace('compute_', 'sm')} or newer, and this is for "
            f"{target}: leave --restore out, or give --restore function"
        )
    if sentences := limits(bundle.manifest.plan):
        raise InputError(f"TensorRT cannot build {bundle.folder}: {'; '.join(sentences)}")
    settings = Settings(
        flavor=library.flavor,
        library_version=library.version,
        parser_version=library.parser_version,
        target=target,
        precision=bundle.manifest.precision,
        batch_sizes=tuple(sorted(wishes.batch_sizes)),
        weights=wishes.weights,
        restore=restore,
        plugin=None,
        kernel_sha256=None,
        weights_sha256=bundle.manifest.files[WEIGHTS_FILE].sha256 if wishes.weights == "embedded" else None,
        options=_options(library, wishes),
    )
    settings = _with_plugin(settings) if restore == "plugin" else settings
    if wishes.optimization_level not in range(6):
        raise InputError(f"the builder's optimization level is 0 to 5; found {wishes.optimization_level!r}")
    check(make_target(settings, bundle.folder.name, (), {}))
    return settings


def embedded_sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of weights that the engine of each graph holds when it holds them."""
    sizes = {}
    for graph in bundle.manifest.graphs:
        weights = external_weights(read_graph(bundle.path(graph.file))).values()
        lengths = ({e.key: e.value for e in weight.external_data}["length"] for weight in weights)
        sizes[graph.name] = sum(map(int, lengths))
    return sizes


def _options(library: Library, wishes: Wishes) -> dict[str, str]:
    """What the builder is told beside target and profiles."""
    options = {"optimization_level": str(wishes.optimization_level), "tf32": "on" if wishes.tf32 else "off"}
    if hasattr(library.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        options["user_allocation"] = "required"  # an engine that allocates by itself cannot be captured in a CUDA graph
    return options


def _with_plugin(settings: Settings) -> Settings:
    """The plugin's name in TensorRT's registry, and the hash of its kernel."""
    from nextscale.plugins.kernel import source_hash
    from nextscale.plugins.signature import NAME, PLUGIN_ATTRIBUTES

    namespace, number = PLUGIN_ATTRIBUTES["plugin_namespace"], PLUGIN_ATTRIBUTES["plugin_version"]
    return replace(settings, plugin=Plugin(NAME, namespace, number), kernel_sha256=source_hash())
