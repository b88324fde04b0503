// A CUDA driver library over the host's memory, for machines without a GPU: enough of its interface for cuda-core and
// cuda.bindings to run what nextscale.runtime.backends.cuda asks of them. Copies happen at once; between the begin and
// the end of a capture they are recorded, and happen when the graph is launched. Kernels are handed to `host_launch`.
// Whatever is not here is answered with CUDA_ERROR_NOT_FOUND, as an old driver would.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Status { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500,
    NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, NOT_PERMITTED = 800 };

struct Context { int device; };
struct Graph { std::vector<std::function<void()>> work; };
struct Stream { Context* context; Graph* recording = nullptr; bool broken = false; };
struct Event { double when = 0; };
struct Library { std::string image; };
struct Kernel { Library* library; std::string name; };
struct Block { size_t size; int kind; Context* context; };  // kind: 1 host, 2 device

Context primary{0}, foreign{0};
thread_local Context* current = nullptr;
thread_local Stream* capturing = nullptr;  // this thread's; what is unsafe breaks it, unless the thread is relaxed
thread_local int mode = 0;
const int relaxed = 2;
std::map<uintptr_t, Block> blocks;
size_t used = 0;
const size_t total = size_t(1) << 28;
double now = 0;
int next_wait = 0;

using Launch = void (*)(const char*, const unsigned*, void**);
Launch on_launch = nullptr;

const Block* find(uintptr_t address)
{
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return nullptr;
    --next;
    return address < next->first + next->second.size ? &next->second : nullptr;
}

int take(uintptr_t* out, size_t size, int kind)
{
    if (!current) return INVALID_CONTEXT;
    if (used + size > total) return OUT_OF_MEMORY;
    void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
    std::memset(memory, 0xAB, size);
    *out = reinterpret_cast<uintptr_t>(memory);
    blocks[*out] = Block{size, kind, current};
    used += kind == 2 ? size : 0;
    return OK;
}

int give(uintptr_t address, int kind)
{
    if (!current) return INVALID_CONTEXT;
    if (capturing && mode != relaxed) {
        capturing->broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    auto found = blocks.find(address);
    if (found == blocks.end() || found->second.kind != kind) return INVALID_VALUE;
    used -= kind == 2 ? found->second.size : 0;
    std::free(reinterpret_cast<void*>(address));
    blocks.erase(found);
    return OK;
}

int ask(Stream* stream, std::function<void()> work)
{
    if (!current) return INVALID_CONTEXT;
    now += 1;
    if (stream && stream->recording) stream->recording->work.push_back(work);
    else work();
    return OK;
}

int copy(uintptr_t to, int to_kind, uintptr_t from, int from_kind, size_t size, Stream* stream)
{
    const Block *target = find(to), *source = find(from);
    if (!target || !source || target->kind != to_kind || source->kind != from_kind) return INVALID_VALUE;
    if (!find(to + size - 1) || !find(from + size - 1)) return INVALID_VALUE;
    return ask(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
}

struct Config { unsigned grid[3], block[3], shared; Stream* stream; void* attributes; unsigned count; };

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void host_launch(Launch function) { on_launch = function; }
// Work of a library's double, in a stream's order.
int host_ask(Stream* stream, void (*work)(int), int number) { return ask(stream, [=] { work(number); }); }
int host_recording(Stream* stream) { return stream->recording != nullptr; }
int host_kind(uintptr_t address) { const Block* block = find(address); return block ? block->kind : 0; }
int host_blocks(int kind)
{
    int count = 0;
    for (auto& entry : blocks) count += entry.second.kind == kind;
    return count;
}
void host_foreign(int on) { current = on ? &foreign : nullptr; }
int host_current() { return current == &foreign ? 2 : current == &primary ? 1 : 0; }
void host_fail_wait(int status) { next_wait = status; }

int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int* version) { *version = 13000; return OK; }
int cuDeviceGetCount(int* count) { *count = 1; return OK; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char* name, int length, int) { std::snprintf(name, length, "Host driver"); return OK; }
int cuDeviceGetAttribute(int* value, int which, int)
{
    *value = which == 75 ? 8 : which == 76 ? 6 : 0;  // compute capability 8.6
    return OK;
}
int cuDevicePrimaryCtxRetain(Context** context, int) { *context = &primary; return OK; }
int cuDevicePrimaryCtxRelease(int) { return OK; }
int cuCtxGetCurrent(Context** context) { *context = current; return OK; }
int cuCtxSetCurrent(Context* context) { current = context; return OK; }
int cuCtxGetDevice(int* device) { *device = 0; return current ? OK : INVALID_CONTEXT; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = *greatest = 0; return OK; }
int cuMemGetInfo(size_t* free, size_t* all) { *free = total - used; *all = total; return current ? OK : INVALID_CONTEXT; }
int cuMemAlloc(uintptr_t* out, size_t size) { return take(out, size, 2); }
int cuMemFree(uintptr_t address) { return give(address, 2); }
int cuMemHostAlloc(uintptr_t* out, size_t size, unsigned) { return take(out, size, 1); }
int cuMemFreeHost(uintptr_t address) { return give(address, 1); }
int cuMemcpyHtoDAsync(uintptr_t to, uintptr_t from, size_t n, Stream* s) { return copy(to, 2, from, 1, n, s); }
int cuMemcpyDtoHAsync(uintptr_t to, uintptr_t from, size_t n, Stream* s) { return copy(to, 1, from, 2, n, s); }
int cuMemcpyDtoDAsync(uintptr_t to, uintptr_t from, size_t n, Stream* s) { return copy(to, 2, from, 2, n, s); }
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t n, Stream* s)
{
    if (!find(to)) return INVALID_VALUE;
    return ask(s, [=] { std::memset(reinterpret_cast<void*>(to), value, n); });
}
int cuPointerGetAttribute(void* out, int which, uintptr_t address)
{
    const Block* block = find(address);
    if (!block) return INVALID_VALUE;
    switch (which) {
    case 1: *static_cast<Context**>(out) = block->context; return OK;
    case 2: *static_cast<unsigned*>(out) = block->kind; return OK;
    case 8: *static_cast<unsigned*>(out) = 0; return OK;  // managed
    case 9: *static_cast<int*>(out) = 0; return OK;  // the device's number
    default: return INVALID_VALUE;
    }
}
int cuPointerGetAttributes(unsigned count, int* which, void** out, uintptr_t address)
{
    for (unsigned i = 0; i < count; ++i) {
        if (cuPointerGetAttribute(out[i], which[i], address) != OK) std::memset(out[i], 0, 4);
    }
    return OK;
}
int cuStreamCreateWithPriority(Stream** stream, unsigned, int) { *stream = new Stream{current}; return OK; }
int cuStreamCreate(Stream** stream, unsigned) { *stream = new Stream{current}; return OK; }
int cuStreamDestroy(Stream* stream) { delete stream; return OK; }
int cuStreamSynchronize(Stream* stream)
{
    const int status = stream && stream->recording ? int(CAPTURE_INVALIDATED) : next_wait;
    next_wait = 0;
    return status;
}
int cuStreamGetCtx(Stream* stream, Context** context) { *context = stream->context; return OK; }
int cuStreamWaitEvent(Stream* stream, Event*, unsigned) { return ask(stream, [] {}); }
int cuStreamBeginCapture(Stream* stream, int)
{
    if (stream->recording) return NOT_PERMITTED;
    stream->recording = new Graph;
    stream->broken = false;
    capturing = stream;
    return OK;
}
int cuThreadExchangeStreamCaptureMode(int* other)
{
    std::swap(mode, *other);
    return OK;
}
int cuStreamEndCapture(Stream* stream, Graph** graph)
{
    if (graph) *graph = stream->broken ? nullptr : stream->recording;
    stream->recording = nullptr;
    capturing = nullptr;
    return stream->broken ? CAPTURE_INVALIDATED : OK;
}
int cuStreamIsCapturing(Stream* stream, int* status) { *status = stream->recording ? 1 : 0; return OK; }
int cuStreamGetCaptureInfo(Stream* stream, int* status, uint64_t* id, Graph** graph, void*, void*, size_t* count)
{
    *status = stream->recording ? 1 : 0;
    if (id) *id = 1;
    if (graph) *graph = stream->recording;
    if (count) *count = 0;
    return OK;
}
struct Instantiate { uint64_t flags; Stream* upload; void* node; int result; };
int cuGraphInstantiateWithParams(Graph** executable, Graph* graph, Instantiate* how)
{
    *executable = new Graph(*graph);
    how->result = 0;
    return OK;
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, uint64_t)
{
    *executable = new Graph(*graph);
    return OK;
}
int cuUserObjectCreate(void** object, void* owner, void*, unsigned, unsigned) { *object = owner; return OK; }
int cuUserObjectRelease(void*, unsigned) { return OK; }
int cuGraphRetainUserObject(Graph*, void*, unsigned, unsigned) { return OK; }
int cuGraphReleaseUserObject(Graph*, void*, unsigned) { return OK; }
int cuGraphUpload(Graph*, Stream*) { return OK; }
int cuGraphLaunch(Graph* graph, Stream* stream)
{
    return ask(stream, [=] { for (auto& work : graph->work) work(); });
}
int cuGraphDestroy(Graph* graph) { delete graph; return OK; }
int cuGraphExecDestroy(Graph* graph) { delete graph; return OK; }
int cuLibraryLoadData(Library** library, const char* image, void*, void*, unsigned, void*, void*, unsigned)
{
    *library = new Library{image};
    return (*library)->image.find(".version") == std::string::npos ? INVALID_VALUE : OK;
}
int cuLibraryUnload(Library*) { return OK; }
int cuLibraryGetKernel(Kernel** kernel, Library* library, const char* name)
{
    if (library->image.find(std::string(".entry ") + name) == std::string::npos) return NOT_FOUND;
    *kernel = new Kernel{library, name};
    return OK;
}
int cuLaunchKernelEx(const Config* config, Kernel* kernel, void** arguments, void**)
{
    // A driver copies arguments when it is asked; none of ours is longer than 8 bytes, and there are 5 at most.
    const size_t count = kernel->name == "uniforms" ? 5 : 3;
    auto kept = std::make_shared<std::vector<uint64_t>>(count);
    for (size_t i = 0; i < count; ++i) std::memcpy(&(*kept)[i], arguments[i], 8);
    std::vector<unsigned> sizes(config->grid, config->grid + 6);
    return ask(config->stream, [=] {
        std::vector<void*> places;
        for (auto& word : *kept) places.push_back(&word);
        if (on_launch) on_launch(kernel->name.c_str(), sizes.data(), places.data());
    });
}
int cuEventCreate(Event** event, unsigned) { *event = new Event; return OK; }
int cuEventRecord(Event* event, Stream*) { event->when = now; return OK; }
int cuEventSynchronize(Event*) { return OK; }
int cuEventQuery(Event*) { return OK; }
int cuEventElapsedTime(float* milliseconds, Event* a, Event* b) { *milliseconds = float(b->when - a->when); return OK; }
int cuEventDestroy(Event* event) { delete event; return OK; }
int cuGetErrorName(int status, const char** text)
{
    *text = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : status == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" :
        status == 901 ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" : "CUDA_ERROR_OTHER";
    return OK;
}
int cuGetErrorString(int, const char** text) { *text = "as the host driver has it"; return OK; }

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found)
{
    static const std::map<std::string, void*> table = {
#define HAS(name) {#name, reinterpret_cast<void*>(&name)}
        HAS(cuInit), HAS(cuDriverGetVersion), HAS(cuDeviceGetCount), HAS(cuDeviceGet), HAS(cuDeviceGetName),
        HAS(cuDeviceGetAttribute), HAS(cuDevicePrimaryCtxRetain), HAS(cuDevicePrimaryCtxRelease), HAS(cuCtxGetCurrent),
        HAS(cuCtxSetCurrent), HAS(cuCtxGetDevice), HAS(cuCtxGetStreamPriorityRange), HAS(cuMemGetInfo), HAS(cuMemAlloc),
        HAS(cuMemFree), HAS(cuMemHostAlloc), HAS(cuMemFreeHost), HAS(cuMemcpyHtoDAsync), HAS(cuMemcpyDtoHAsync),
        HAS(cuMemcpyDtoDAsync), HAS(cuMemsetD8Async), HAS(cuPointerGetAttribute), HAS(cuPointerGetAttributes),
        HAS(cuStreamCreateWithPriority), HAS(cuStreamCreate), HAS(cuStreamDestroy), HAS(cuStreamSynchronize),
        HAS(cuStreamGetCtx), HAS(cuStreamWaitEvent), HAS(cuStreamBeginCapture), HAS(cuStreamEndCapture),
        HAS(cuStreamIsCapturing), HAS(cuThreadExchangeStreamCaptureMode), HAS(cuStreamGetCaptureInfo), HAS(cuGraphInstantiateWithParams), HAS(cuGraphUpload),
        HAS(cuGraphInstantiateWithFlags), HAS(cuUserObjectCreate), HAS(cuUserObjectRelease),
        HAS(cuGraphRetainUserObject), HAS(cuGraphReleaseUserObject), HAS(cuGraphLaunch), HAS(cuGraphDestroy), HAS(cuGraphExecDestroy), HAS(cuLibraryLoadData), HAS(cuLibraryUnload),
        HAS(cuLibraryGetKernel), HAS(cuLaunchKernelEx), HAS(cuEventCreate), HAS(cuEventRecord), HAS(cuEventSynchronize),
        HAS(cuEventQuery), HAS(cuEventElapsedTime), HAS(cuEventDestroy), HAS(cuGetErrorName), HAS(cuGetErrorString),
        HAS(cuGetProcAddress_v2),
#undef HAS
    };
    auto entry = table.find(name);
    if (std::getenv("HOST_DRIVER_TRACE")) std::fprintf(stderr, "%s %s\n", name, entry == table.end() ? "-" : "+");
    *function = entry == table.end() ? nullptr : entry->second;
    if (found) *found = entry == table.end() ? 1 : 0;
    return entry == table.end() ? NOT_FOUND : OK;
}

}  // extern "C"
#pragma GCC visibility pop
