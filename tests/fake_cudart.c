/* A libcudart for tests on host memory. Streams are deferred queues: what is enqueued runs only when a stream or event
 * is waited for, so a missing synchronisation shows as wrong data. It is as strict as the real one about handles, sizes
 * and what a capture forbids, and stricter about pageable memory, which it reads and writes as late as any other.
 *
 * Read at load: FAKE_CUDART_DEVICES=n, FAKE_CUDART_INTEGRATED=1, FAKE_CUDART_ERROR=35 (what every call fails with),
 * FAKE_CUDART_DRIVER=13000, FAKE_CUDART_RUNTIME=12090, FAKE_CUDART_FAIL=cudaMalloc:3 (the third call from now fails;
 * cudaMalloc:3:2 says with which error). A copy of the library under another name is one of its own. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { OK, INVALID_VALUE, NO_MEMORY, NO_DEVICE = 100, INVALID_DEVICE, INVALID_HANDLE = 400, NOT_READY = 600,
       UNSUPPORTED = 900, INVALIDATED, ISOLATION = 905, IMPLICIT, WRONG_THREAD = 908, UNKNOWN = 999 };
enum { DEVICE, HOST, MAPPED };

typedef struct Queue Queue;
typedef struct { int live, done; Queue *stream; long ticket; double ms; } Event;
typedef struct Item {
    struct Item *next;
    long ticket;
    enum { COPY, CALL, RECORD, WAIT } kind;
    void *to; const void *from; size_t count;  /* COPY */
    void (*work)(void *); void *user;          /* CALL */
    Event *event;                              /* RECORD */
    Queue *other; long until;                  /* WAIT */
} Item;
/* A stream or a graph. Those destroyed stay in memory: queued work may still name them. */
struct Queue { int live, invalid; long last; Item *first, **end; Queue *graph, *next; pthread_t thread; };
typedef struct Block { char *host, *device; size_t size; int kind, owner; struct Block *next; } Block;

static pthread_mutex_t mutex;
static Block *blocks;
static Queue defaults[2], *streams = defaults;  /* handles 0 and 1: the legacy stream; 2: the thread's own */
static int live, devices, integrated, broken, driver, runtime;
static struct { char name[64]; int left, error; } failure;
static __thread int current, last_error;
static __thread Queue *capturing;

static void unlock(int *held) { (void)held; pthread_mutex_unlock(&mutex); }
static int fail(int code) { if (code) last_error = code; return code; }
static int lose(Queue *stream, int code) { stream->invalid = 1; return fail(code); }  /* a capture, with an error */
static int create(void **handle, void *object) { live++; *handle = object; return OK; }

static int refused(const char *name) {
    return broken ? broken : failure.left && !strcmp(name, failure.name) && !--failure.left ? failure.error : OK;
}

#define LOCK int held __attribute__((cleanup(unlock))) = pthread_mutex_lock(&mutex); (void)held
#define ENTER LOCK; { int code_ = refused(__func__); if (code_) return fail(code_); }
#define NEED(condition, code) if (!(condition)) return fail(code)
#define NEED_DEVICE NEED((unsigned)device < (unsigned)devices, INVALID_DEVICE)
#define STREAM Queue *stream = stream_of(handle); NEED(stream, INVALID_HANDLE)
#define LIVE(thing) NEED((thing) && (thing)->live, INVALID_HANDLE)
#define SAFE if (capturing) return lose(capturing, UNSUPPORTED)  /* what this thread's capture forbids */

void fakeFail(const char *name, int nth, int error) {
    LOCK;
    snprintf(failure.name, sizeof failure.name, "%s", name);
    failure.left = nth;
    failure.error = error;
}

int fakeLive(void) { LOCK; return live; }  /* allocations, streams, events and graphs not yet released */

static int setting(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }

__attribute__((constructor)) static void load(void) {
    char name[64] = "";
    int nth = 0, error = 0;
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &recursive);
    devices = setting("FAKE_CUDART_DEVICES", 1);
    integrated = setting("FAKE_CUDART_INTEGRATED", 0);
    broken = setting("FAKE_CUDART_ERROR", 0);
    driver = setting("FAKE_CUDART_DRIVER", broken == 35 ? 0 : 13000);
    runtime = setting("FAKE_CUDART_RUNTIME", 12090);
    for (int i = 0; i < 2; i++) defaults[i] = (Queue){.live = 1, .end = &defaults[i].first};
    defaults[0].next = &defaults[1];
    if (getenv("FAKE_CUDART_FAIL") && sscanf(getenv("FAKE_CUDART_FAIL"), "%63[^:]:%d:%d", name, &nth, &error) >= 2)
        fakeFail(name, nth, error ? error : strstr(name, "lloc") ? NO_MEMORY : UNKNOWN);
}

static Queue *stream_of(void *handle) {
    Queue *stream = (uintptr_t)handle <= 1 ? &defaults[0] : (uintptr_t)handle == 2 ? &defaults[1] : handle;
    return stream->live ? stream : NULL;
}

static long push(Queue *queue, const Item *item) {
    Item *new = memcpy(malloc(sizeof *new), item, sizeof *new);
    new->next = NULL;
    new->ticket = ++queue->last;
    *queue->end = new;
    queue->end = &new->next;
    return new->ticket;
}

static int enqueue(void *handle, Item item) {
    STREAM;
    NEED(!stream->graph || !stream->invalid, INVALIDATED);
    push(stream->graph ? stream->graph : stream, &item);
    return OK;
}

static void run(Queue *stream, long until) {
    struct timespec now;
    while (stream->first && stream->first->ticket <= until) {
        Item *item = stream->first;
        if (!(stream->first = item->next)) stream->end = &stream->first;
        if (item->kind == COPY) memmove(item->to, item->from, item->count);
        if (item->kind == CALL) item->work(item->user);
        if (item->kind == WAIT) run(item->other, item->until);
        if (item->kind == RECORD && item->event->stream == stream && item->event->ticket == item->ticket) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            item->event->ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
            item->event->done = 1;
        }
        free(item);
    }
}

int fakeEnqueue(void *stream, void (*work)(void *), void *user) {
    ENTER;
    return enqueue(stream, (Item){.kind = CALL, .work = work, .user = user});
}

int cudaRuntimeGetVersion(int *version) { NEED(broken != 35, 35); *version = runtime; return OK; }  /* as CUDA 11 */
int cudaDriverGetVersion(int *version) { *version = driver; return OK; }
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) { int code = last_error; last_error = OK; return code; }

const char *cudaGetErrorString(int code) {
    static const struct { int code; const char *text; } texts[] = {
        {1, "invalid argument"}, {2, "out of memory"}, {100, "no CUDA-capable device is detected"},
        {35, "CUDA driver version is insufficient for CUDA runtime version"}, {101, "invalid device ordinal"},
        {400, "invalid resource handle"}, {600, "device not ready"},
        {900, "operation not permitted when stream is capturing"},
        {901, "operation failed due to a previous error during capture"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) if (texts[i].code == code) return texts[i].text;
    return "unknown error";
}

int cudaGetDeviceCount(int *count) { ENTER; *count = devices; NEED(devices, NO_DEVICE); return OK; }
int cudaGetDevice(int *device) { ENTER; *device = current; return OK; }
int cudaSetDevice(int device) { ENTER; NEED_DEVICE; current = device; return OK; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    const int multiprocessors = integrated ? 16 : 28, minor = integrated ? 7 : 6;
    const int known[][2] = {{16, multiprocessors}, {18, integrated}, {19, 1}, {75, 8}, {76, minor}};
    ENTER; NEED_DEVICE;
    for (int i = 0; i < 5; i++) if (known[i][0] == attribute) { *value = known[i][1]; return OK; }
    return fail(INVALID_VALUE);
}

int cudaGetDeviceProperties(char *properties, int device) {  /* the head, the same in CUDA 11 to 13, and their size */
    ENTER; NEED_DEVICE;
    memset(properties, 0xff, 1032);
    snprintf(properties, 256, integrated ? "Fake Orin %d" : "Fake RTX %d", device);
    *(size_t *)(properties + 288) = (size_t)8 << 30;
    return OK;
}

static size_t rest(const Block *block, const char *address) {  /* from there to the block's end; 0: it is not in it */
    size_t host = address - block->host, device = address - block->device;
    return host < block->size ? block->size - host : device < block->size ? block->size - device : 0;
}

static Block *block_of(const void *address) {
    Block *block = blocks;
    while (block && !rest(block, address)) block = block->next;
    return block;
}

static int allocate(void **address, size_t size, int kind) {
    *address = NULL;
    if (!size) return OK;
    NEED(!(size >> 33), NO_MEMORY);
    Block *block = malloc(sizeof *block);
    *block = (Block){.size = size, .kind = kind, .owner = current, .next = blocks};
    if (kind == MAPPED) {  /* one memory at two addresses, as for a GPU with an address space of its own */
        FILE *file = tmpfile();
        if (ftruncate(fileno(file), (off_t)size)) abort();
        block->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
        block->device = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
        fclose(file);
    } else block->host = block->device = malloc(size);
    memset(block->host, 0xcd, size);  /* what nobody wrote can be seen */
    blocks = block;
    return create(address, block->host);
}

static int release(void *address, int host) {
    if (!address) return OK;
    Block *block = block_of(address), **at = &blocks;
    NEED(block && block->host == address && host == (block->kind != DEVICE), INVALID_VALUE);
    for (Queue *stream = streams; stream; stream = stream->next) run(stream, stream->last);  /* as the real one waits */
    while (*at != block) at = &(*at)->next;
    *at = block->next;
    memset(block->host, 0xdd, block->size);
    if (block->kind == MAPPED) munmap(block->host, block->size), munmap(block->device, block->size);
    else free(block->host);
    free(block);
    live--;
    return OK;
}

int cudaMalloc(void **address, size_t size) { ENTER; SAFE; return allocate(address, size, DEVICE); }
int cudaHostAlloc(void **to, size_t size, unsigned flags) { ENTER; SAFE; return allocate(to, size, 1 + !!(flags & 2)); }
int cudaFree(void *address) { ENTER; SAFE; return release(address, 0); }
int cudaFreeHost(void *address) { ENTER; SAFE; return release(address, 1); }

int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    ENTER; Block *block = block_of(host);
    NEED(block && block->kind == MAPPED && !flags, INVALID_VALUE);
    *device = block->device + ((char *)host - block->host);
    return OK;
}

int cudaPointerGetAttributes(int *attributes, const void *address) {
    ENTER; Block *block = block_of(address);
    memset(attributes, 0, 96);
    attributes[0] = block ? 1 + (block->kind == DEVICE) : 0;  /* unregistered, host, device */
    attributes[1] = block ? block->owner : -2;
    return OK;
}

int cudaMemcpyAsync(void *to, const void *from, size_t count, int kind, void *stream) {
    ENTER;
    Block *target = block_of(to), *source = block_of(from);  /* none for pageable memory, of which nothing is known */
    NEED(to && from && kind == 4 && (!target || count <= rest(target, to)), INVALID_VALUE);
    NEED(!source || count <= rest(source, from), INVALID_VALUE);
    return enqueue(stream, (Item){.kind = COPY, .to = to, .from = from, .count = count});
}

static int queue(void **handle) {
    Queue *made = calloc(1, sizeof *made);
    *made = (Queue){.live = 1, .end = &made->first};
    return create(handle, made);
}

static int destroy(int *alive) { NEED(*alive, INVALID_HANDLE); *alive = 0; live--; return OK; }

int cudaStreamCreateWithFlags(Queue **stream, unsigned flags) {
    ENTER;
    NEED(flags <= 1 && !queue((void **)stream), INVALID_VALUE);
    (*stream)->next = streams;
    streams = *stream;
    return OK;
}

int cudaStreamDestroy(Queue *stream) {
    ENTER;
    NEED((uintptr_t)stream > 2, INVALID_HANDLE);
    run(stream, stream->last);
    return destroy(&stream->live);
}

static int wait_for(Queue *stream, long until) {
    if (stream->graph) return lose(stream, UNSUPPORTED);
    run(stream, until);
    return OK;
}

int cudaStreamSynchronize(void *handle) { ENTER; STREAM; return wait_for(stream, stream->last); }

int cudaEventCreateWithFlags(void **event, unsigned flags) {
    ENTER;
    NEED(flags < 8, INVALID_VALUE);
    *(Event *)(*event = calloc(1, sizeof(Event))) = (Event){.live = 1};
    return create(event, *event);
}

int cudaEventDestroy(Event *event) { ENTER; LIVE(event); return destroy(&event->live); }

int cudaEventRecord(Event *event, void *handle) {
    ENTER; STREAM;
    LIVE(event);
    *event = (Event){.live = 1, .stream = stream, .ticket = stream->last + 1};
    return stream->graph ? OK : enqueue(handle, (Item){.kind = RECORD, .event = event});
}

int cudaStreamWaitEvent(void *handle, Event *event, unsigned flags) {
    ENTER; STREAM;
    LIVE(event);
    NEED(!flags, INVALID_VALUE);
    if (!event->stream || event->stream == stream) return OK;
    if (stream->graph) return lose(stream, ISOLATION);  /* it would wait for work outside the capture */
    return enqueue(handle, (Item){.kind = WAIT, .other = event->stream, .until = event->ticket});
}

int cudaEventSynchronize(Event *event) {
    ENTER;
    LIVE(event);
    return event->stream ? wait_for(event->stream, event->ticket) : OK;
}

int cudaEventElapsedTime(float *ms, Event *start, Event *end) {
    ENTER;
    LIVE(start);
    LIVE(end);
    NEED(start->stream && end->stream, INVALID_HANDLE);
    NEED(start->done && end->done, NOT_READY);
    *ms = (float)(end->ms - start->ms);
    return OK;
}

int cudaStreamBeginCapture(void *handle, int mode) {
    ENTER; STREAM;
    NEED((unsigned)mode <= 2, INVALID_VALUE);
    NEED(stream != defaults, IMPLICIT);
    NEED(!stream->graph, UNSUPPORTED);
    queue((void **)&stream->graph);
    stream->invalid = 0;
    stream->thread = pthread_self();
    if (mode != 2) capturing = stream;
    return OK;
}

int cudaStreamEndCapture(void *handle, void **graph) {
    LOCK;
    Queue *stream = stream_of(handle), *recorded = stream ? stream->graph : NULL;
    int code = refused(__func__);
    *graph = NULL;
    NEED(recorded, INVALID_VALUE);
    NEED(pthread_equal(stream->thread, pthread_self()), WRONG_THREAD);
    stream->graph = capturing = NULL;  /* it is over, also where it fails */
    if (!code && !stream->invalid) { *graph = recorded; return OK; }
    destroy(&recorded->live);
    return fail(code ? code : INVALIDATED);
}

static int replay(const Queue *from, Queue *to) {
    for (const Item *item = from->first; item; item = item->next) push(to, item);
    return OK;
}

int cudaGraphInstantiateWithFlags(Queue **executable, Queue *graph, unsigned long long flags) {
    ENTER;
    LIVE(graph);
    NEED(!flags, INVALID_VALUE);
    queue((void **)executable);
    return replay(graph, *executable);
}

int cudaGraphLaunch(Queue *executable, void *handle) {
    ENTER; STREAM;
    LIVE(executable);
    return replay(executable, stream->graph ? stream->graph : stream);
}

int cudaGraphDestroy(Queue *graph) { ENTER; LIVE(graph); return destroy(&graph->live); }
int cudaGraphExecDestroy(Queue *executable) { ENTER; LIVE(executable); return destroy(&executable->live); }
