"""An engine of one ScatterRestore node: built with the plugin, or run where nobody has registered it.

python plugin_engine.py build FLAVOR PART FULL ENGINE     prints how many plugin layers the network has
python plugin_engine.py run FLAVOR PART FULL ENGINE       writes the result's bytes to ENGINE.result
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.one_node import one_node

from nextscale.compare.restore_speed import Buffers, Size
from nextscale.plugins.tensorrt_plugin import register
from nextscale.runtime.backends.cuda import open_device
from nextscale.runtime.backends.device import host_array
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.backends.tensorrt.library import load

SIZE = Size("small", (16, 16), (10, 10), kept=102, width=264)
SEED = 4


def build(flavor: str, part: str, full: str, engine: Path) -> None:
    library = load(flavor)
    if library.takes_plugins:
        register(library.trt, compile_ptx)
    builder = library.trt.Builder(library.logger)
    network = library.network(builder)
    parser = library.trt.OnnxParser(network, library.logger)
    accepted = parser.parse(one_node(SIZE.shapes, part, full).SerializeToString())
    assert accepted, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    sys.stdout.write(f"{library.plugin_layers(network)}\n")
    config = builder.create_builder_config()
    library.set_target(config, "sm86")  # of a flavour that builds for named ones
    content = builder.build_serialized_network(network, config)
    assert content is not None
    engine.write_bytes(content)


def run(flavor: str, part: str, full: str, engine: Path) -> None:
    library, device = load(flavor), open_device()
    stream = device.stream()
    buffers = Buffers(device, stream, SIZE, part, full, SEED)
    with device.current():
        runtime = library.trt.Runtime(library.logger)
        loaded = library.deserialize(runtime, engine.read_bytes(), engine.name)
        context = loaded.create_execution_context()
        for i in range(loaded.num_io_tensors):
            name = loaded.get_tensor_name(i)
            assert context.set_tensor_address(name, buffers.addresses[name])
        assert context.execute_async_v3(stream.handle)
    length = SIZE.lengths(part, full)["result"]
    result = device.pin(length)
    stream.download(result.address, buffers.addresses["result"], length)
    stream.wait()
    engine.with_suffix(".result").write_bytes(host_array(result).tobytes())


if __name__ == "__main__":
    {"build": build, "run": run}[sys.argv[1]](*sys.argv[2:5], Path(sys.argv[5]))
