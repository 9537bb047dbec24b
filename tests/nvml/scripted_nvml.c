/* A stand-in for NVIDIA's management library that plays a script.
 *
 * The script (written by scripted.py) describes each device: its true power over time, the sensors and the counter
 * that look at it, its other readings as step functions, and faults. Time zero is `origin` on CLOCK_MONOTONIC, kept in
 * a file that all processes of a test share; the same file takes the log of calls and, while a test runs, changes of
 * power ("live" steps). virtual.py holds the same sensor arithmetic in Python; a test compares the two.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MAX_DEVICES 16
#define MAX_SLICES 8
#define MAX_FAULTS 32
#define MAX_PROCESSES 16
#define LIVE_STEPS 2048   /* per device; scripted.py knows these sizes too */
#define LOG_RECORDS 262144
#define LINE_BYTES (1 << 22)

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9
};
enum { FIELD_ENERGY = 83, FIELD_AVERAGE = 185, FIELD_INSTANT = 186, FIELD_MIN_LIMIT = 187, FIELD_CURRENT_LIMIT = 190 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { AT_QUERY = 0, AT_UPDATE = 1, NO_TIMESTAMP = 2 };
enum { COUNTER_RESET = 0, COUNTER_FREEZE = 1, COUNTER_JUMP = 2 };
enum { FAULT_ERROR = 0, FAULT_SLEEP = 1, FAULT_VALUE = 2 };

/* ---- what a script says ------------------------------------------------------------------------------------- */

typedef struct { int n; double period, *t, *p, *e; } Wave;            /* e: joules from t[0] to t[i] */
typedef struct { int present; double window, update, phase, noise; } Sensor;
typedef struct { int present; double period, phase, base; int follows_sensor; } Counter;
typedef struct { int kind; double at, until, amount; } CounterEvent;
typedef struct { int n; double *t, *v; } Series;
typedef struct { int compute; unsigned pid; double mb, start, until; } Process;
typedef struct { char function[64]; int kind; double start, until, amount; long after_calls, calls; } Fault;

enum { TOTAL_POWER_SAMPLES = 0, BUFFERED_SAMPLES = 120 };

enum { TEMPERATURE, SM_CLOCK, MEMORY_CLOCK, UTILISATION, MEMORY_UTILISATION, MEMORY_USED, THROTTLE, N_SERIES };

typedef struct Device {
    struct Device *parent; /* of a MIG slice, else NULL */
    int index, slice;
    char uuid[96], name[96], serial[32], bus_id[32];
    unsigned architecture, cc_major, cc_minor, persistence, c2c, gi, ci;
    unsigned limit, default_limit, enforced_limit, min_limit, max_limit; /* mW */
    unsigned max_sm_clock, max_memory_clock;
    double memory_total_mb, gain, module_extra;
    uint64_t seed;
    int timestamps, usage_is_average, n_slices, n_processes, n_faults, n_counter_events;
    Wave wave;
    Sensor instant, average, buffer; /* buffer: what nvmlDeviceGetSamples keeps */
    Counter counter;
    CounterEvent counter_events[8];
    Series series[N_SERIES];
    Process processes[MAX_PROCESSES];
    Fault faults[MAX_FAULTS];
} Device;

typedef struct { double t, watts, joules; } LiveStep;
typedef struct { uint64_t count; LiveStep steps[LIVE_STEPS]; } Live;
typedef struct { double t; int32_t device, pid; char function[48]; } LogRecord;
typedef struct {
    union { struct { double origin; uint64_t log_count; } head; char page[4096]; } u;
    Live live[MAX_DEVICES];
    LogRecord log[LOG_RECORDS];
} Shared;

static Device devices[MAX_DEVICES], slices[MAX_DEVICES][MAX_SLICES];
static int n_devices, loaded, init_count;
static char driver_version[80];
static int cuda_version;
static Shared *shared;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static double clock_s(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static double script_time(void) { return clock_s(CLOCK_MONOTONIC) - shared->u.head.origin; }

/* ---- the same arithmetic as virtual.py ------------------------------------------------------------------------ */

static int last_at_or_before(const double *t, int n, double x) {
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (t[mid] <= x) lo = mid + 1; else hi = mid;
    }
    return lo - 1;
}

static double wave_within(const Wave *w, double t) {
    int i = last_at_or_before(w->t, w->n, t);
    if (i < 0) return w->p[0] * (t - w->t[0]);
    double dt = t - w->t[i];
    if (i == w->n - 1) return w->e[i] + w->p[i] * dt;
    double slope = (w->p[i + 1] - w->p[i]) / (w->t[i + 1] - w->t[i]);
    return w->e[i] + w->p[i] * dt + 0.5 * slope * dt * dt;
}

static double wave_energy(const Wave *w, double t) { /* joules from script time 0 to t */
    if (w->period <= 0) return wave_within(w, t);
    double turns = floor(t / w->period);
    return turns * wave_within(w, w->period) + wave_within(w, t - turns * w->period);
}

static double true_energy(const Device *d, double t) {
    const Live *live = &shared->live[d->index];
    uint64_t n = __atomic_load_n(&live->count, __ATOMIC_ACQUIRE);
    if (n == 0 || t <= live->steps[0].t) return wave_energy(&d->wave, t);
    uint64_t i = n - 1;
    while (i > 0 && live->steps[i].t > t) i--;
    return live->steps[i].joules + live->steps[i].watts * (t - live->steps[i].t);
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

static double gaussian(uint64_t seed, int64_t k) {
    uint64_t a = mix(seed ^ mix((uint64_t)k)), b = mix(a);
    double u = ((double)(a >> 11) + 0.5) / 9007199254740992.0, v = (double)(b >> 11) / 9007199254740992.0;
    return sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v);
}

static double sensor_power(const Device *d, const Sensor *s, int64_t k) { /* watts of update k */
    double tick = s->phase + (double)k * s->update;
    double mean = (true_energy(d, tick) - true_energy(d, tick - s->window)) / s->window;
    double watts = d->gain * mean + (s->noise > 0 ? s->noise * gaussian(d->seed, k) : 0.0);
    return watts > 0 ? watts : 0.0;
}

static int64_t tick_index(double t, double phase, double period) { return (int64_t)floor((t - phase) / period); }

/* Joules that the counter has integrated at `t`: all of the power, or what the driver's samples showed of it. */
static double counted_energy(const Device *d, double t) {
    const Counter *c = &d->counter;
    double tick = c->phase + (double)tick_index(t, c->phase, c->period) * c->period;
    if (!c->follows_sensor) return d->gain * true_energy(d, tick);
    const Sensor *s = d->buffer.present ? &d->buffer : &d->instant;
    double joules = 0;
    int64_t last = tick_index(tick, s->phase, s->update);
    for (int64_t k = 1; k <= last; k++) joules += sensor_power(d, s, k) * s->update;
    return joules;
}

static double counter_joules(const Device *d, double t) {
    double offset = d->counter.base, seen = t;
    for (int i = 0; i < d->n_counter_events; i++) {
        const CounterEvent *e = &d->counter_events[i];
        if (t < e->at) continue;
        if (e->kind == COUNTER_FREEZE) { if (t < e->until) seen = fmin(seen, e->at); }
        else if (e->kind == COUNTER_JUMP) offset += e->amount;
        else offset = -counted_energy(d, e->at);
    }
    return offset + counted_energy(d, seen);
}

static double series_at(const Series *s, double t) {
    int i = last_at_or_before(s->t, s->n, t);
    return s->v[i < 0 ? 0 : i];
}

/* ---- reading the script ----------------------------------------------------------------------------------------- */

static double *numbers(int n, int *ok) {
    double *values = malloc(sizeof(double) * (size_t)(n > 0 ? n : 1));
    for (int i = 0; i < n; i++) {
        char *word = strtok(NULL, " ");
        if (!word) { *ok = 0; values[i] = 0; } else values[i] = strtod(word, NULL);
    }
    return values;
}

static void read_wave(Wave *w, int *ok) {
    double *head = numbers(2, ok);
    w->n = (int)head[0];
    w->period = head[1];
    free(head);
    double *flat = numbers(2 * w->n, ok);
    w->t = malloc(sizeof(double) * (size_t)w->n);
    w->p = malloc(sizeof(double) * (size_t)w->n);
    w->e = malloc(sizeof(double) * (size_t)w->n);
    for (int i = 0; i < w->n; i++) {
        w->t[i] = flat[2 * i];
        w->p[i] = flat[2 * i + 1];
        w->e[i] = i ? w->e[i - 1] + 0.5 * (w->p[i - 1] + w->p[i]) * (w->t[i] - w->t[i - 1]) : 0.0;
    }
    free(flat);
}

static void read_series(Device *d, int *ok) {
    static const char *names[N_SERIES] = {"temperature_c", "sm_clock_mhz", "memory_clock_mhz", "utilisation_pct",
                                          "memory_utilisation_pct", "memory_used_mb", "throttle_reasons"};
    char *name = strtok(NULL, " ");
    double *count = numbers(1, ok);
    int n = (int)count[0], which = -1;
    free(count);
    for (int i = 0; name && i < N_SERIES; i++) if (!strcmp(names[i], name)) which = i;
    double *flat = numbers(2 * n, ok);
    if (which < 0) { *ok = 0; free(flat); return; }
    Series *s = &d->series[which];
    s->n = n;
    s->t = malloc(sizeof(double) * (size_t)n);
    s->v = malloc(sizeof(double) * (size_t)n);
    for (int i = 0; i < n; i++) { s->t[i] = flat[2 * i]; s->v[i] = flat[2 * i + 1]; }
    free(flat);
}

static void read_word(char *to, size_t size) { /* the rest of the line */
    char *word = strtok(NULL, "");
    snprintf(to, size, "%s", word ? word : "");
}

static void read_mig(Device *d, int *ok) {
    if (d->n_slices == MAX_SLICES) { *ok = 0; return; }
    Device *s = &slices[d->index][d->n_slices];
    memset(s, 0, sizeof *s);
    double *v = numbers(3, ok);
    s->parent = d;
    s->index = d->index;
    s->slice = d->n_slices++;
    s->gi = (unsigned)v[0];
    s->ci = (unsigned)v[1];
    s->memory_total_mb = v[2];
    read_word(s->uuid, sizeof s->uuid);
    snprintf(s->name, sizeof s->name, "%s", d->name);
    free(v);
}

static int read_device_line(Device *d, const char *key) {
    int ok = 1;
    double *v = NULL;
    if (!strcmp(key, "uuid")) read_word(d->uuid, sizeof d->uuid);
    else if (!strcmp(key, "name")) read_word(d->name, sizeof d->name);
    else if (!strcmp(key, "serial")) read_word(d->serial, sizeof d->serial);
    else if (!strcmp(key, "bus_id")) read_word(d->bus_id, sizeof d->bus_id);
    else if (!strcmp(key, "identity")) {
        v = numbers(5, &ok);
        d->architecture = (unsigned)v[0]; d->cc_major = (unsigned)v[1]; d->cc_minor = (unsigned)v[2];
        d->persistence = (unsigned)v[3]; d->c2c = (unsigned)v[4];
    } else if (!strcmp(key, "limits_mw")) {
        v = numbers(5, &ok);
        d->limit = (unsigned)v[0]; d->default_limit = (unsigned)v[1]; d->enforced_limit = (unsigned)v[2];
        d->min_limit = (unsigned)v[3]; d->max_limit = (unsigned)v[4];
    } else if (!strcmp(key, "maxima")) {
        v = numbers(3, &ok);
        d->max_sm_clock = (unsigned)v[0]; d->max_memory_clock = (unsigned)v[1]; d->memory_total_mb = v[2];
    } else if (!strcmp(key, "readings")) {
        v = numbers(5, &ok);
        d->gain = v[0]; d->module_extra = v[1]; d->seed = (uint64_t)v[2];
        d->timestamps = (int)v[3]; d->usage_is_average = (int)v[4];
    } else if (!strcmp(key, "wave")) read_wave(&d->wave, &ok);
    else if (!strcmp(key, "instant") || !strcmp(key, "average") || !strcmp(key, "buffer")) {
        v = numbers(4, &ok);
        Sensor *s = key[0] == 'i' ? &d->instant : key[0] == 'a' ? &d->average : &d->buffer;
        *s = (Sensor){1, v[0], v[1], v[2], v[3]};
    } else if (!strcmp(key, "counter")) {
        v = numbers(4, &ok);
        d->counter = (Counter){1, v[0], v[1], v[2], (int)v[3]};
    } else if (!strcmp(key, "counter_event")) {
        v = numbers(4, &ok);
        if (d->n_counter_events == 8) ok = 0;
        else d->counter_events[d->n_counter_events++] = (CounterEvent){(int)v[0], v[1], v[2], v[3]};
    } else if (!strcmp(key, "series")) read_series(d, &ok);
    else if (!strcmp(key, "process")) {
        v = numbers(5, &ok);
        if (d->n_processes == MAX_PROCESSES) ok = 0;
        else d->processes[d->n_processes++] = (Process){(int)v[0], (unsigned)v[1], v[2], v[3], v[4]};
    } else if (!strcmp(key, "fault")) {
        v = numbers(5, &ok);
        if (d->n_faults == MAX_FAULTS) ok = 0;
        else {
            Fault *f = &d->faults[d->n_faults++];
            *f = (Fault){"", (int)v[0], v[1], v[2], v[3], (long)v[4], 0};
            read_word(f->function, sizeof f->function);
        }
    } else if (!strcmp(key, "mig")) read_mig(d, &ok);
    else ok = 0;
    free(v);
    return ok;
}

static int map_shared(const char *path) {
    int fd = open(path, O_RDWR);
    if (fd < 0) return 0;
    void *at = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) return 0;
    if (shared) munmap(shared, sizeof(Shared));
    shared = at;
    return 1;
}

static void forget(void) {
    for (int i = 0; i < n_devices; i++) {
        Device *d = &devices[i];
        free(d->wave.t); free(d->wave.p); free(d->wave.e);
        for (int s = 0; s < N_SERIES; s++) { free(d->series[s].t); free(d->series[s].v); }
    }
    memset(devices, 0, sizeof devices);
    n_devices = loaded = 0;
}

/* Read the script at `path`. Returns 0, or the number of the line that cannot be read (-1: the file). */
API int scripted_nvml_load(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    pthread_mutex_lock(&mutex);
    forget();
    char *line = malloc(LINE_BYTES);
    int number = 0, bad = 0;
    while (!bad && fgets(line, LINE_BYTES, file)) {
        number++;
        line[strcspn(line, "\n")] = 0;
        char *key = strtok(line, " "), word[4096];
        if (!key) continue;
        if (!strcmp(key, "shared")) { read_word(word, sizeof word); bad = !map_shared(word); }
        else if (!strcmp(key, "driver")) read_word(driver_version, sizeof driver_version);
        else if (!strcmp(key, "cuda")) { read_word(word, sizeof word); cuda_version = atoi(word); }
        else if (!strcmp(key, "gpu")) {
            if (n_devices == MAX_DEVICES) bad = 1;
            else { devices[n_devices].index = n_devices; n_devices++; }
        } else bad = !n_devices || !read_device_line(&devices[n_devices - 1], key);
    }
    free(line);
    fclose(file);
    loaded = !bad && shared != NULL;
    pthread_mutex_unlock(&mutex);
    return bad ? number : (loaded ? 0 : -1);
}

/* From now on there is no driver (until the next load). */
API void scripted_nvml_unload(void) {
    pthread_mutex_lock(&mutex);
    forget();
    pthread_mutex_unlock(&mutex);
}

/* Read the script named by SCRIPTED_NVML again; handles stay valid. */
API int scripted_nvml_reload(void) {
    const char *path = getenv("SCRIPTED_NVML");
    return path ? scripted_nvml_load(path) : -1;
}

/* ---- every call passes here --------------------------------------------------------------------------------------- */

static void log_call(int device, const char *function) {
    uint64_t i = __atomic_fetch_add(&shared->u.head.log_count, 1, __ATOMIC_RELAXED);
    if (i >= LOG_RECORDS) return;
    LogRecord *r = &shared->log[i];
    r->device = device;
    r->pid = (int32_t)getpid();
    strncpy(r->function, function, sizeof r->function - 1);
    r->t = clock_s(CLOCK_MONOTONIC);
}

/* Apply the faults of `d` to `function`. `value` (may be NULL) is set by a faulty reading. */
static int faults(Device *d, const char *function, double *value) {
    int code = SUCCESS;
    double now = script_time(), pause = 0;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < d->n_faults; i++) {
        Fault *f = &d->faults[i];
        if (strcmp(f->function, function) && strcmp(f->function, "*")) continue;
        if (f->calls++ < f->after_calls || now < f->start || now >= f->until) continue;
        if (f->kind == FAULT_SLEEP) pause += f->amount;
        else if (f->kind == FAULT_ERROR) code = (int)f->amount;
        else if (value) *value = f->amount;
    }
    pthread_mutex_unlock(&mutex);
    if (pause > 0) usleep((useconds_t)(pause * 1e6));
    return code;
}

static int enter(Device *d, const char *function) {
    if (!init_count || !loaded) return UNINITIALIZED;
    if (!d) return INVALID_ARGUMENT;
    log_call(d->index, function);
    return faults(d->parent ? d->parent : d, function, NULL);
}

#define ENTER(d) do { int code_ = enter(d, __func__); if (code_) return code_; } while (0)
#define ENTER_BOARD(d) do { ENTER(d); if ((d)->parent) return NOT_SUPPORTED; } while (0)

static int copy_text(char *to, unsigned size, const char *from) {
    if (strlen(from) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

/* ---- library and system --------------------------------------------------------------------------------------------- */

API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!loaded && scripted_nvml_reload() != 0) return DRIVER_NOT_LOADED;
    double unset = 0.0, now = clock_s(CLOCK_MONOTONIC);
    __atomic_compare_exchange(&shared->u.head.origin, &unset, &now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    log_call(-1, "nvmlInit");
    init_count++;
    return SUCCESS;
}
API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlInit(void) { return nvmlInitWithFlags(0); }
API int nvmlShutdown(void) {
    if (!init_count) return UNINITIALIZED;
    init_count--;
    return SUCCESS;
}
API const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
    }
}
API int nvmlSystemGetDriverVersion(char *to, unsigned size) {
    return init_count && loaded ? copy_text(to, size, driver_version) : UNINITIALIZED;
}
API int nvmlSystemGetNVMLVersion(char *to, unsigned size) {
    return init_count && loaded ? copy_text(to, size, driver_version) : UNINITIALIZED;
}
API int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = cuda_version;
    return init_count && loaded ? SUCCESS : UNINITIALIZED;
}
API int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* ---- handles and identity --------------------------------------------------------------------------------------------- */

API int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)n_devices;
    return init_count && loaded ? SUCCESS : UNINITIALIZED;
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **d) {
    if (!init_count || !loaded) return UNINITIALIZED;
    if (index >= (unsigned)n_devices) return INVALID_ARGUMENT;
    *d = &devices[index];
    return faults(*d, __func__, NULL);
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, Device **d) {
    if (!init_count || !loaded) return UNINITIALIZED;
    for (int i = 0; i < n_devices; i++) {
        if (!strcmp(devices[i].uuid, uuid)) { *d = &devices[i]; return faults(*d, __func__, NULL); }
        for (int s = 0; s < devices[i].n_slices; s++)
            if (!strcmp(slices[i][s].uuid, uuid)) { *d = &slices[i][s]; return SUCCESS; }
    }
    return NOT_FOUND;
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device **d) {
    if (!init_count || !loaded) return UNINITIALIZED;
    for (int i = 0; i < n_devices; i++) {
        size_t longer = strlen(devices[i].bus_id), given = strlen(bus_id);
        const char *tail = given <= longer ? devices[i].bus_id + (longer - given) : devices[i].bus_id;
        if (given && !strcasecmp(tail, bus_id)) { *d = &devices[i]; return SUCCESS; }
    }
    return NOT_FOUND;
}
API int nvmlDeviceGetIndex(Device *d, unsigned *index) {
    ENTER(d);
    *index = (unsigned)(d->parent ? d->slice : d->index);
    return SUCCESS;
}
API int nvmlDeviceGetMinorNumber(Device *d, unsigned *minor) { ENTER_BOARD(d); *minor = (unsigned)d->index; return SUCCESS; }
API int nvmlDeviceGetName(Device *d, char *to, unsigned size) { ENTER(d); return copy_text(to, size, d->name); }
API int nvmlDeviceGetUUID(Device *d, char *to, unsigned size) { ENTER(d); return copy_text(to, size, d->uuid); }
API int nvmlDeviceGetSerial(Device *d, char *to, unsigned size) {
    ENTER_BOARD(d);
    return d->serial[0] ? copy_text(to, size, d->serial) : NOT_SUPPORTED;
}
API int nvmlDeviceGetArchitecture(Device *d, unsigned *architecture) {
    ENTER(d);
    *architecture = d->parent ? d->parent->architecture : d->architecture;
    return SUCCESS;
}
API int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
    ENTER(d);
    const Device *board = d->parent ? d->parent : d;
    *major = (int)board->cc_major;
    *minor = (int)board->cc_minor;
    return SUCCESS;
}
typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;
API int nvmlDeviceGetPciInfo_v3(Device *d, PciInfo *info) {
    ENTER(d);
    const Device *board = d->parent ? d->parent : d;
    memset(info, 0, sizeof *info);
    sscanf(board->bus_id, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->legacy_bus_id, sizeof info->legacy_bus_id, "%04X:%02X:%02X.0", info->domain & 0xFFFFu,
             info->bus & 0xFFu, info->device & 0xFFu);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", board->bus_id);
    info->device_id = 0x233010DE;
    return SUCCESS;
}
API int nvmlDeviceGetPersistenceMode(Device *d, unsigned *mode) { ENTER_BOARD(d); *mode = d->persistence; return SUCCESS; }
API int nvmlDeviceSetPersistenceMode(Device *d, unsigned mode) { (void)mode; ENTER_BOARD(d); return NO_PERMISSION; }
API int nvmlDeviceGetComputeMode(Device *d, unsigned *mode) { ENTER_BOARD(d); *mode = 0; return SUCCESS; }
API int nvmlDeviceGetPerformanceState(Device *d, unsigned *state) { ENTER_BOARD(d); *state = 0; return SUCCESS; }
typedef struct { unsigned version, enabled; } C2cMode;
API int nvmlDeviceGetC2cModeInfoV(Device *d, C2cMode *info) {
    ENTER_BOARD(d);
    if (!d->c2c) return NOT_SUPPORTED;
    info->enabled = 1;
    return SUCCESS;
}

/* ---- MIG ------------------------------------------------------------------------------------------------------------------ */

API int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) {
    ENTER_BOARD(d);
    if (d->architecture < 7) return NOT_SUPPORTED;
    *current = *pending = d->n_slices > 0;
    return SUCCESS;
}
API int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count) {
    ENTER_BOARD(d);
    *count = d->architecture < 7 ? 0 : 7;
    return SUCCESS;
}
API int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **slice) {
    ENTER_BOARD(d);
    if (index >= (unsigned)d->n_slices) return NOT_FOUND;
    *slice = &slices[d->index][index];
    return SUCCESS;
}
API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *d, Device **board) {
    ENTER(d);
    if (!d->parent) return INVALID_ARGUMENT;
    *board = d->parent;
    return SUCCESS;
}
API int nvmlDeviceIsMigDeviceHandle(Device *d, unsigned *is_mig) { ENTER(d); *is_mig = d->parent != NULL; return SUCCESS; }
API int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *id) {
    ENTER(d);
    if (!d->parent) return NOT_SUPPORTED;
    *id = d->gi;
    return SUCCESS;
}
API int nvmlDeviceGetComputeInstanceId(Device *d, unsigned *id) {
    ENTER(d);
    if (!d->parent) return NOT_SUPPORTED;
    *id = d->ci;
    return SUCCESS;
}

/* ---- power and energy --------------------------------------------------------------------------------------------------------- */

static int read_power(Device *d, const Sensor *s, const char *field, unsigned *milliwatts) {
    double raw = NAN;
    int code = faults(d, field, &raw);
    if (code) return code;
    if (!s->present) return NOT_SUPPORTED;
    double t = script_time();
    double watts = sensor_power(d, s, tick_index(t, s->phase, s->update));
    *milliwatts = isnan(raw) ? (unsigned)floor(watts * 1000.0 + 0.5) : (unsigned)raw;
    return SUCCESS;
}
API int nvmlDeviceGetPowerUsage(Device *d, unsigned *milliwatts) {
    if (!init_count || !loaded) return UNINITIALIZED;
    if (!d) return INVALID_ARGUMENT;
    log_call(d->index, __func__);
    if (d->parent) return NOT_SUPPORTED;
    return read_power(d, d->usage_is_average ? &d->average : &d->instant, __func__, milliwatts);
}
API int nvmlDeviceGetTotalEnergyConsumption(Device *d, unsigned long long *millijoules) {
    if (!init_count || !loaded) return UNINITIALIZED;
    if (!d) return INVALID_ARGUMENT;
    log_call(d->index, __func__);
    double raw = NAN;
    int code = faults(d->parent ? d->parent : d, __func__, &raw);
    if (code) return code;
    if (d->parent || !d->counter.present) return NOT_SUPPORTED;
    double joules = counter_joules(d, script_time());
    *millijoules = isnan(raw) ? (unsigned long long)fmax(0.0, floor(joules * 1000.0)) : (unsigned long long)raw;
    return SUCCESS;
}

typedef struct {
    unsigned field, scope;
    long long timestamp_us, latency_us;
    unsigned type, code;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

static long long wall_us(const Device *d, const Sensor *s) {
    if (d->timestamps == NO_TIMESTAMP) return 0;
    double wall = clock_s(CLOCK_REALTIME);
    if (d->timestamps == AT_UPDATE && s) {
        double t = script_time();
        wall -= t - (s->phase + (double)tick_index(t, s->phase, s->update) * s->update);
    }
    return (long long)(wall * 1e6);
}

static void read_field(Device *d, FieldValue *v) {
    static const char *names[] = {"field:185", "field:186"};
    v->latency_us = 0;
    v->type = 1; /* unsigned int */
    v->code = NOT_SUPPORTED;
    v->value.ull = 0;
    if (v->field == FIELD_ENERGY) {
        v->type = 3; /* unsigned long long */
        v->timestamp_us = wall_us(d, NULL);
        v->code = (unsigned)nvmlDeviceGetTotalEnergyConsumption(d, &v->value.ull);
    } else if (v->field == FIELD_AVERAGE || v->field == FIELD_INSTANT) {
        const Sensor *s = v->field == FIELD_INSTANT ? &d->instant : &d->average;
        if (v->scope > SCOPE_MODULE || (v->scope == SCOPE_MODULE && d->module_extra < 0)) return;
        log_call(d->index, names[v->field - FIELD_AVERAGE]);
        v->timestamp_us = wall_us(d, s);
        v->code = (unsigned)read_power(d, s, names[v->field - FIELD_AVERAGE], &v->value.ui);
        if (v->code == SUCCESS && v->scope == SCOPE_MODULE) v->value.ui += (unsigned)(d->module_extra * 1000.0);
    } else if (v->field >= FIELD_MIN_LIMIT && v->field <= FIELD_CURRENT_LIMIT) {
        const unsigned limits[] = {d->min_limit, d->max_limit, d->default_limit, d->limit};
        v->timestamp_us = wall_us(d, NULL);
        v->value.ui = limits[v->field - FIELD_MIN_LIMIT];
        v->code = SUCCESS;
    }
}
API int nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values) {
    ENTER_BOARD(d);
    for (int i = 0; i < count; i++) read_field(d, &values[i]);
    return SUCCESS;
}
typedef struct { unsigned long long timestamp_us; union { double d; unsigned ui; unsigned long long ull; } value; } Sample;

API int nvmlDeviceGetSamples(Device *d, int type, unsigned long long since_us, int *value_type, unsigned *count, Sample *to) {
    ENTER_BOARD(d);
    static double wall_origin = NAN; /* one for all calls: a sample keeps its time stamp */
    if (isnan(wall_origin)) wall_origin = clock_s(CLOCK_REALTIME) - clock_s(CLOCK_MONOTONIC);
    const Sensor *s = &d->buffer;
    if (type != TOTAL_POWER_SAMPLES || !s->present) return NOT_SUPPORTED;
    *value_type = 1; /* unsigned int */
    if (!to) { *count = BUFFERED_SAMPLES; return SUCCESS; }
    int64_t last = tick_index(script_time(), s->phase, s->update);
    unsigned room = *count < BUFFERED_SAMPLES ? *count : BUFFERED_SAMPLES;
    *count = 0;
    for (int64_t k = last - room + 1; k <= last; k++) {
        double tick = s->phase + (double)k * s->update;
        unsigned long long stamp_us = (unsigned long long)((wall_origin + shared->u.head.origin + tick) * 1e6);
        if (stamp_us <= since_us) continue;
        to[*count].timestamp_us = stamp_us;
        to[*count].value.ull = (unsigned long long)floor(sensor_power(d, s, k) * 1000.0 + 0.5);
        (*count)++;
    }
    return *count ? SUCCESS : NOT_FOUND;
}
API int nvmlDeviceGetPowerManagementLimit(Device *d, unsigned *mw) { ENTER_BOARD(d); *mw = d->limit; return SUCCESS; }
API int nvmlDeviceGetPowerManagementDefaultLimit(Device *d, unsigned *mw) {
    ENTER_BOARD(d);
    *mw = d->default_limit;
    return SUCCESS;
}
API int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *mw) { ENTER_BOARD(d); *mw = d->enforced_limit; return SUCCESS; }
API int nvmlDeviceGetPowerManagementLimitConstraints(Device *d, unsigned *min, unsigned *max) {
    ENTER_BOARD(d);
    *min = d->min_limit;
    *max = d->max_limit;
    return SUCCESS;
}
API int nvmlDeviceSetPowerManagementLimit(Device *d, unsigned mw) { (void)mw; ENTER_BOARD(d); return NO_PERMISSION; }

/* ---- telemetry ------------------------------------------------------------------------------------------------------------------ */

static int read_series_value(Device *d, int which, const char *function, unsigned *to) {
    int code = enter(d, function);
    if (code) return code;
    if (d->parent || !d->series[which].n) return NOT_SUPPORTED;
    *to = (unsigned)series_at(&d->series[which], script_time());
    return SUCCESS;
}
API int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *celsius) {
    return sensor ? INVALID_ARGUMENT : read_series_value(d, TEMPERATURE, __func__, celsius);
}
typedef struct { unsigned version; int sensor, celsius; } Temperature;
API int nvmlDeviceGetTemperatureV(Device *d, Temperature *t) {
    return read_series_value(d, TEMPERATURE, __func__, (unsigned *)&t->celsius);
}
static int clock_series(int type) { return type == 0 || type == 1 ? SM_CLOCK : type == 2 ? MEMORY_CLOCK : -1; }
API int nvmlDeviceGetClockInfo(Device *d, int type, unsigned *mhz) {
    int which = clock_series(type);
    return which < 0 ? NOT_SUPPORTED : read_series_value(d, which, __func__, mhz);
}
API int nvmlDeviceGetMaxClockInfo(Device *d, int type, unsigned *mhz) {
    ENTER_BOARD(d);
    int which = clock_series(type);
    if (which < 0) return NOT_SUPPORTED;
    *mhz = which == SM_CLOCK ? d->max_sm_clock : d->max_memory_clock;
    return SUCCESS;
}
API int nvmlDeviceGetApplicationsClock(Device *d, int type, unsigned *mhz) { return nvmlDeviceGetMaxClockInfo(d, type, mhz); }
typedef struct { unsigned gpu, memory; } Utilisation;
API int nvmlDeviceGetUtilizationRates(Device *d, Utilisation *u) {
    int code = read_series_value(d, UTILISATION, __func__, &u->gpu);
    if (code) return code;
    u->memory = (unsigned)series_at(&d->series[MEMORY_UTILISATION], script_time());
    return SUCCESS;
}
static int read_throttle(Device *d, const char *function, unsigned long long *reasons) {
    unsigned low;
    int code = read_series_value(d, THROTTLE, function, &low);
    if (!code) *reasons = low;
    return code;
}
API int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *reasons) {
    return read_throttle(d, __func__, reasons);
}
API int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *reasons) {
    return read_throttle(d, __func__, reasons);
}
API int nvmlDeviceGetSupportedClocksThrottleReasons(Device *d, unsigned long long *reasons) {
    ENTER_BOARD(d);
    *reasons = 0x1FF;
    return SUCCESS;
}
API int nvmlDeviceGetSupportedClocksEventReasons(Device *d, unsigned long long *reasons) {
    ENTER_BOARD(d);
    *reasons = 0x1FF;
    return SUCCESS;
}
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
static void memory_of(const Device *d, Memory *m) {
    const Series *used = &d->series[MEMORY_USED];
    m->total = (unsigned long long)(d->memory_total_mb * 1e6);
    m->used = used->n ? (unsigned long long)(series_at(used, script_time()) * 1e6) : 0;
    m->free = m->total > m->used ? m->total - m->used : 0;
}
API int nvmlDeviceGetMemoryInfo(Device *d, Memory *m) { ENTER(d); memory_of(d, m); return SUCCESS; }
API int nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *m) {
    ENTER(d);
    Memory plain;
    memory_of(d, &plain);
    m->total = plain.total; m->reserved = 0; m->free = plain.free; m->used = plain.used;
    return SUCCESS;
}
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } ProcessInfo;
static int list_processes(Device *d, int compute, unsigned *count, ProcessInfo *to) {
    const Device *board = d->parent ? d->parent : d;
    unsigned found = 0, room = *count;
    double now = script_time();
    for (int i = 0; i < board->n_processes; i++) {
        const Process *p = &board->processes[i];
        if (p->compute != compute || now < p->start || now >= p->until) continue;
        if (found < room && to)
            to[found] = (ProcessInfo){p->pid, (unsigned long long)(p->mb * 1e6), 0xFFFFFFFFu, 0xFFFFFFFFu};
        found++;
    }
    *count = found;
    return found > room || (found && !to) ? INSUFFICIENT_SIZE : SUCCESS;
}
API int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, ProcessInfo *to) {
    ENTER(d);
    return list_processes(d, 1, count, to);
}
API int nvmlDeviceGetComputeRunningProcesses_v2(Device *d, unsigned *count, ProcessInfo *to) {
    ENTER(d);
    return list_processes(d, 1, count, to);
}
API int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *d, unsigned *count, ProcessInfo *to) {
    ENTER(d);
    return list_processes(d, 0, count, to);
}
API int nvmlDeviceGetGraphicsRunningProcesses_v2(Device *d, unsigned *count, ProcessInfo *to) {
    ENTER(d);
    return list_processes(d, 0, count, to);
}
