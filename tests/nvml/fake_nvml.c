/* libnvidia-ml.so.1 without a GPU: the part of NVML that unidle calls, answering from a text file.
 *
 * The file is named by UNIDLE_FAKE_NVML and read again whenever it changes, so that a test can move
 * the world while a process runs. Its keys, values and faults are described in README.md. A key that
 * is not there is a thing that the GPU does not support (3). Structures, versions and return codes
 * follow nvml.h as nvidia-ml-py 13.615.71 declares it. Not thread-safe, as GPM itself is not.
 *
 *   gcc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned Return;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25,
};
enum { MAX_LINES = 65536, MAX_DEVICES = 256, MAX_MIG = 8, SCOPE = 64 };

/* A handle is bound to a UUID, not to an index: when the file drops the GPU, its handle is lost. */
typedef struct {
    char uuid[80], scope[64]; /* the scope as of reading number `reading` of the file */
    unsigned calls, xids_delivered, events_delivered, reading;
    unsigned long long registered;
} Device;
typedef struct { char *key, *value; double from_s; } Line;

static Line lines[MAX_LINES];
static size_t line_count;
static unsigned places[2 * MAX_LINES]; /* hash of a key -> 1 + the first of its lines; 0 is a free place */
static double began_s, length_s; /* where the file's time begins, CLOCK_MONOTONIC, and how long it is */
static Device devices[MAX_DEVICES];
static int initialised;
static unsigned reading;

/* --- the answer file ---------------------------------------------------------------------------- */

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int by_key(const void *a, const void *b) { return strcmp(((const Line *)a)->key, ((const Line *)b)->key); }

static int by_key_and_time(const void *a, const void *b) {
    double difference = ((const Line *)a)->from_s - ((const Line *)b)->from_s;
    int order = by_key(a, b);
    return order ? order : difference < 0 ? -1 : difference > 0;
}

/* Where the first line of a key is noted, or would be: a search by halves would cost more than a driver. */
static unsigned *place_of(const char *key) {
    unsigned hash = 2166136261u;
    for (const char *c = key; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    for (unsigned i = hash % (2 * MAX_LINES);; i = (i + 1) % (2 * MAX_LINES))
        if (!places[i] || !strcmp(lines[places[i] - 1].key, key)) return &places[i];
}

/* `[t=SECONDS]` begins what holds from then on. */
static void parse(char *text) {
    double from_s = 0;
    line_count = 0;
    for (char *rest = text, *line; (line = strsep(&rest, "\n")) && line_count < MAX_LINES;) {
        char *equals = strchr(line, '=');
        if (*line == '#' || !equals || sscanf(line, "[t=%lf]", &from_s) == 1) continue;
        *equals = 0;
        lines[line_count++] = (Line){line, equals + 1, from_s};
    }
    qsort(lines, line_count, sizeof *lines, by_key_and_time);
    memset(places, 0, sizeof places);
    for (size_t i = 0; i < line_count; i++)
        if (!i || by_key(&lines[i], &lines[i - 1])) *place_of(lines[i].key) = (unsigned)i + 1;
}

static const char *find(const char *format, ...);

/* Read the file again if it is another one than last time; without a file there is no driver. */
static Return load(void) {
    static struct stat seen;
    static char *text;
    const char *path = getenv("UNIDLE_FAKE_NVML");
    struct stat now;
    if (!path || stat(path, &now)) return DRIVER_NOT_LOADED;
    if (text && now.st_ino == seen.st_ino && now.st_size == seen.st_size &&
        !memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim))
        return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return DRIVER_NOT_LOADED;
    free(text);
    text = calloc(1, (size_t)now.st_size + 1);
    size_t length = fread(text, 1, (size_t)now.st_size, file);
    text[length] = 0;
    fclose(file);
    parse(text);
    reading++;
    seen = now;
    length_s = 0, began_s = now_s();
    const char *whole = find("length_s"), *began = find("begins_s");
    length_s = whole ? strtod(whole, NULL) : 0;
    began_s = began ? strtod(began, NULL) : began_s;
    return SUCCESS;
}

static const char *find(const char *format, ...) {
    char key[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    unsigned place = *place_of(key);
    if (!place) return NULL;
    Line *line = &lines[place - 1];
    if (line->from_s <= 0 && (line + 1 == lines + line_count || by_key(line, line + 1))) return line->value;
    double at_s = now_s() - began_s;
    if (length_s > 0) at_s -= length_s * (double)(long long)(at_s / length_s);
    while (line + 1 < lines + line_count && line[1].from_s <= at_s && !by_key(line + 1, line)) line++;
    return line->from_s <= at_s ? line->value : NULL;
}

/* A whole number of `scope`, or the return code that stands in its place. */
static Return number(const char *scope, const char *key, long long *out) {
    const char *value = find("%s.%s", scope, key);
    if (!value) return NOT_SUPPORTED;
    if (!strncmp(value, "error:", 6)) return (Return)atoi(value + 6);
    *out = value[0] == '-' ? strtoll(value, NULL, 0) : (long long)strtoull(value, NULL, 0);
    return SUCCESS;
}

static Return text_of(const char *scope, const char *key, char *out, unsigned length) {
    const char *value = find("%s.%s", scope, key);
    if (!value) return NOT_SUPPORTED;
    if (!strncmp(value, "error:", 6)) return (Return)atoi(value + 6);
    if (strlen(value) >= length) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

/* --- faults and the trace ----------------------------------------------------------------------- */

static void trace(const char *scope, const char *function) {
    const char *path = getenv("UNIDLE_FAKE_NVML_TRACE");
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (file < 0) return;
    dprintf(file, "%s %s\n", scope, function);
    close(file);
}

/* What every call begins with: play the fault that the file asks of this function, if any. */
static Return enter(const char *scope, const char *function) {
    trace(scope, function);
    const char *fault = find("%s.fault.%s", scope, function);
    for (; fault && *fault; fault += strcspn(fault, ","), fault += *fault == ',') {
        if (!strncmp(fault, "hang", 4)) for (;;) pause();
        if (!strncmp(fault, "crash", 5)) { signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); }
        if (!strncmp(fault, "delay_ms:", 9)) usleep((unsigned)atoi(fault + 9) * 1000u);
        if (!strncmp(fault, "error:", 6)) return (Return)atoi(fault + 6);
    }
    return SUCCESS;
}

static Return enter_driver(const char *function) {
    Return loaded = load();
    return loaded ? loaded : !initialised ? UNINITIALIZED : enter("driver", function);
}

static int gpu_count(void) {
    const char *count = find("gpus");
    return count ? atoi(count) : 0;
}

/* The scope of a UUID, `gpu.N` or `gpu.N.mig.M`, wherever the file has it now. */
static int locate(const char *uuid, char *scope) {
    for (int i = 0; i < gpu_count(); i++)
        for (int m = -1; m < MAX_MIG; m++) {
            if (m < 0) snprintf(scope, SCOPE, "gpu.%d", i);
            else snprintf(scope, SCOPE, "gpu.%d.mig.%d", i, m);
            const char *found = find("%s.uuid", scope);
            if (found && !strcmp(found, uuid)) return 1;
        }
    return 0;
}

/* Where a device is in this reading of the file; empty where it is not. */
static const char *scope_of(Device *device) {
    if (device->reading != reading) {
        if (!locate(device->uuid, device->scope)) device->scope[0] = 0;
        device->reading = reading;
    }
    return device->scope;
}

static Return enter_gpu(Device *device, const char *function, char *scope) {
    Return loaded = load();
    if (loaded) return loaded;
    if (!initialised) return UNINITIALIZED;
    if (!device) return INVALID_ARGUMENT;
    scope_of(device);
    if (!device->scope[0]) return GPU_IS_LOST;
    strcpy(scope, device->scope);
    long long from;
    device->calls++;
    if (!number(scope, "lost_from_call", &from) && device->calls >= from) return GPU_IS_LOST;
    return enter(scope, function);
}

#define GPU_CALL(device)                                      \
    char scope[SCOPE];                                        \
    Return entered = enter_gpu((device), __func__, scope);    \
    if (entered) return entered

static Return handle_of(const char *scope, Device **out) {
    const char *uuid = find("%s.uuid", scope);
    if (!uuid) return NOT_FOUND;
    for (int i = 0; i < MAX_DEVICES; i++) {
        if (!devices[i].uuid[0]) snprintf(devices[i].uuid, sizeof devices[i].uuid, "%s", uuid);
        if (!strcmp(devices[i].uuid, uuid)) return *out = &devices[i], SUCCESS;
    }
    return INSUFFICIENT_SIZE;
}

/* --- the library and the list of GPUs ----------------------------------------------------------- */

Return nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    Return result = load();
    if (!result) result = enter("driver", __func__);
    initialised = !result;
    return result;
}
Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Return nvmlShutdown(void) {
    Return result = enter_driver(__func__);
    initialised = 0;
    return result;
}

const char *nvmlErrorString(Return code) {
    static char text[32];
    snprintf(text, sizeof text, "fake NVML error %u", code);
    return text;
}

#define DRIVER_TEXT(function, key)                              \
    Return function(char *out, unsigned length) {               \
        Return entered = enter_driver(__func__);                \
        return entered ? entered : text_of("driver", key, out, length); \
    }
DRIVER_TEXT(nvmlSystemGetDriverVersion, "version")
DRIVER_TEXT(nvmlSystemGetNVMLVersion, "nvml_version")

Return nvmlDeviceGetCount_v2(unsigned *out) {
    Return entered = enter_driver(__func__);
    if (!entered) *out = (unsigned)gpu_count();
    return entered;
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    char scope[SCOPE];
    Return entered = enter_driver(__func__);
    snprintf(scope, sizeof scope, "gpu.%u", index);
    if (!entered) entered = index < (unsigned)gpu_count() ? enter(scope, __func__) : INVALID_ARGUMENT;
    return entered ? entered : handle_of(scope, out);
}

Return nvmlDeviceGetHandleByUUID(const char *uuid, Device **out) {
    char scope[SCOPE];
    Return entered = enter_driver(__func__);
    if (entered) return entered;
    return locate(uuid, scope) ? handle_of(scope, out) : NOT_FOUND;
}

/* --- facts and plain numbers -------------------------------------------------------------------- */

#define TEXT(function, key) \
    Return function(Device *device, char *out, unsigned length) { GPU_CALL(device); return text_of(scope, key, out, length); }
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part")

#define NUMBER(function, type, key)                      \
    Return function(Device *device, type *out) {         \
        GPU_CALL(device);                                \
        long long value = 0;                             \
        Return result = number(scope, key, &value);      \
        if (!result) *out = (type)value;                 \
        return result;                                   \
    }
NUMBER(nvmlDeviceGetMinorNumber, unsigned, "minor")
NUMBER(nvmlDeviceGetPowerUsage, unsigned, "power_mw")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit_mw")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy_mj")
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "event_reasons")
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "event_reasons")
NUMBER(nvmlDeviceGetSupportedEventTypes, unsigned long long, "supported_events")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned, "mig_max")
NUMBER(nvmlDeviceGetGpuInstanceId, unsigned, "gpu_instance_id")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "pcie.width")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "pcie.width_max")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "pcie.generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "pcie.generation_max")

Return nvmlDeviceGetIndex(Device *device, unsigned *out) {
    GPU_CALL(device);
    return sscanf(scope, "gpu.%u", out) == 1 ? SUCCESS : INVALID_ARGUMENT;
}

typedef struct { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; } PciInfo;
Return nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *out) {
    GPU_CALL(device);
    *out = (PciInfo){0};
    return text_of(scope, "pci_bus_id", out->bus_id, sizeof out->bus_id);
}

Return nvmlDeviceGetClockInfo(Device *device, unsigned type, unsigned *out) {
    GPU_CALL(device);
    static const char *keys[] = {"clock.graphics_mhz", "clock.sm_mhz", "clock.memory_mhz", "clock.video_mhz"};
    long long value = 0;
    Return result = type < 4 ? number(scope, keys[type], &value) : INVALID_ARGUMENT;
    *out = (unsigned)value;
    return result;
}

Return nvmlDeviceGetMaxClockInfo(Device *device, unsigned type, unsigned *out) {
    GPU_CALL(device);
    static const char *keys[] = {"max_clock.graphics_mhz", "max_clock.sm_mhz", "max_clock.memory_mhz", "max_clock.video_mhz"};
    long long value = 0;
    Return result = type < 4 ? number(scope, keys[type], &value) : INVALID_ARGUMENT;
    *out = (unsigned)value;
    return result;
}

Return nvmlDeviceGetTemperatureThreshold(Device *device, unsigned kind, unsigned *out) {
    GPU_CALL(device);
    char key[32];
    long long value = 0;
    snprintf(key, sizeof key, "threshold.%u_c", kind);
    Return result = number(scope, key, &value);
    *out = (unsigned)value;
    return result;
}

Return nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *out) {
    GPU_CALL(device);
    long long value = 0;
    Return result = sensor ? INVALID_ARGUMENT : number(scope, "temperature_c", &value);
    *out = (unsigned)value;
    return result;
}

typedef struct { unsigned version, sensor; int temperature; } TemperatureV1;
Return nvmlDeviceGetTemperatureV(Device *device, TemperatureV1 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    long long value = 0;
    Return result = out->sensor ? INVALID_ARGUMENT : number(scope, "temperature_c", &value);
    out->temperature = (int)value;
    return result;
}

typedef struct { unsigned version; int margin; } MarginV1;
Return nvmlDeviceGetMarginTemperature(Device *device, MarginV1 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    long long value = 0;
    Return result = number(scope, "margin_c", &value);
    out->margin = (int)value;
    return result;
}

typedef struct { unsigned version; unsigned char cluster[16]; Return status; unsigned clique, state, health; } FabricV2;
Return nvmlDeviceGetGpuFabricInfoV(Device *device, FabricV2 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    long long state = 0, health = 0;
    Return result = number(scope, "fabric.state", &state);
    number(scope, "fabric.health", &health);
    out->state = (unsigned)state, out->health = (unsigned)health;
    return result;
}

typedef struct { unsigned version; unsigned long long counts[11]; unsigned exceeded; } SramStatusV1;
Return nvmlDeviceGetSramEccErrorStatus(Device *device, SramStatusV1 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    long long exceeded = 0;
    Return result = number(scope, "sram.threshold_exceeded", &exceeded);
    out->exceeded = (unsigned)exceeded;
    return result;
}

/* Several numbers that one call gives together: all of them, or the first failure. */
static Return numbers(const char *scope, int count, const char *const keys[], long long out[]) {
    for (int i = 0; i < count; i++) {
        Return result = number(scope, keys[i], &out[i]);
        if (result) return result;
    }
    return SUCCESS;
}

NUMBER(nvmlDeviceGetNumGpuCores, unsigned, "cores")
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned, "memory.bus_bits")
NUMBER(nvmlDeviceGetArchitecture, unsigned, "architecture")
NUMBER(nvmlDeviceGetNumaNodeId, int, "numa_node")
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, "persistence_mode")
NUMBER(nvmlDeviceGetComputeMode, unsigned, "compute_mode")
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, "power_limit_default_mw")
NUMBER(nvmlDeviceGetPerformanceState, unsigned, "performance_state")

#define TWO_NUMBERS(function, type, first, second)                     \
    Return function(Device *device, type *out, type *other) {           \
        GPU_CALL(device);                                               \
        static const char *const keys[] = {first, second};              \
        long long v[2] = {0};                                           \
        Return result = numbers(scope, 2, keys, v);                     \
        *out = (type)v[0], *other = (type)v[1];                         \
        return result;                                                  \
    }
TWO_NUMBERS(nvmlDeviceGetCudaComputeCapability, int, "compute_capability.major", "compute_capability.minor")
TWO_NUMBERS(nvmlDeviceGetEccMode, unsigned, "ecc_mode", "ecc_mode_pending")
TWO_NUMBERS(nvmlDeviceGetPowerManagementLimitConstraints, unsigned, "power_limit_min_mw", "power_limit_max_mw")

typedef struct { unsigned version; char ib_guid[16], chassis[16]; unsigned char numbers[5]; } PlatformV2;
Return nvmlDeviceGetPlatformInfo(Device *device, PlatformV2 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    static const char *const keys[] = {"platform.slot", "platform.tray", "platform.host", "platform.peer", "platform.module"};
    long long v[5] = {0};
    Return result = numbers(scope, 5, keys, v);
    for (int i = 0; i < 5; i++) out->numbers[i] = (unsigned char)v[i];
    return result;
}

static const char *const MEMORY[] = {"memory.total", "memory.reserved", "memory.free", "memory.used"};

typedef struct { unsigned long long total, free, used; } MemoryV1;
Return nvmlDeviceGetMemoryInfo(Device *device, MemoryV1 *out) {
    GPU_CALL(device);
    long long v[4] = {0};
    Return result = numbers(scope, 4, MEMORY, v);
    /* Version 1 counts what the driver reserves as used. */
    *out = (MemoryV1){(unsigned long long)v[0], (unsigned long long)v[2], (unsigned long long)(v[1] + v[3])};
    return result;
}

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
Return nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *out) {
    GPU_CALL(device);
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    return numbers(scope, 4, MEMORY, (long long *)&out->total);
}

typedef struct { unsigned gpu, memory; } Utilization;
Return nvmlDeviceGetUtilizationRates(Device *device, Utilization *out) {
    GPU_CALL(device);
    static const char *const keys[] = {"utilization.gpu", "utilization.memory"};
    long long v[2] = {0};
    Return result = numbers(scope, 2, keys, v);
    *out = (Utilization){(unsigned)v[0], (unsigned)v[1]};
    return result;
}

Return nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    GPU_CALL(device);
    static const char *const keys[] = {"rows.corrected", "rows.uncorrected", "rows.pending", "rows.failed"};
    long long v[4] = {0};
    Return result = numbers(scope, 4, keys, v);
    *corrected = (unsigned)v[0], *uncorrected = (unsigned)v[1], *pending = (unsigned)v[2], *failed = (unsigned)v[3];
    return result;
}

/* --- field values ------------------------------------------------------------------------------- */

typedef union { double d; unsigned u; unsigned long ul; unsigned long long ull; long long sll; int i; unsigned short us; } Value;
typedef struct { unsigned field, scope; int64_t timestamp_us, latency_us; unsigned type; Return result; Value value; } FieldValue;

/* `TYPE:VALUE` with the types of nvmlValueType_t in their order, or `error:CODE`. */
static Return decode(const char *text, unsigned *type, Value *out) {
    static const char *const types[] = {"d:", "u:", "ul:", "ull:", "sll:", "i:", "us:"};
    if (!text) return NOT_SUPPORTED;
    if (!strncmp(text, "error:", 6)) return (Return)atoi(text + 6);
    for (*type = 0; *type < 7; ++*type)
        if (!strncmp(text, types[*type], strlen(types[*type]))) break;
    const char *digits = strchr(text, ':');
    if (*type == 7 || !digits++) return INVALID_ARGUMENT;
    switch (*type) {
    case 0: out->d = strtod(digits, NULL); break;
    case 1: out->u = (unsigned)strtoul(digits, NULL, 0); break;
    case 2: out->ul = strtoul(digits, NULL, 0); break;
    case 3: out->ull = strtoull(digits, NULL, 0); break;
    case 4: out->sll = strtoll(digits, NULL, 0); break;
    case 5: out->i = (int)strtol(digits, NULL, 0); break;
    case 6: out->us = (unsigned short)strtoul(digits, NULL, 0); break;
    }
    return SUCCESS;
}

Return nvmlDeviceGetFieldValues(Device *device, int count, FieldValue *values) {
    GPU_CALL(device);
    for (int i = 0; i < count; i++) {
        FieldValue *v = &values[i];
        v->timestamp_us = (int64_t)(now_s() * 1e6);
        v->latency_us = 1;
        memset(&v->value, 0xff, sizeof v->value); /* who reads more than the type says reads nonsense */
        const char *text = v->scope ? find("%s.field.%u.%u", scope, v->field, v->scope) : find("%s.field.%u", scope, v->field);
        v->result = decode(text, &v->type, &v->value);
    }
    return SUCCESS;
}

/* --- buffers of samples: `TYPE;SECONDS:VALUE;SECONDS:VALUE`, in every section others ----------------- */

typedef struct { unsigned long long time_us; Value value; } BufferSample;
enum { BUFFER = 128 };

/* The samples of one line that came since `seen_us`, where the file's time 0 is at `zero_s`. */
static unsigned samples_of(const char *text, double zero_s, unsigned long long seen_us, unsigned *type, BufferSample out[], unsigned found) {
    for (const char *next = strchr(text, ';'); next; next = strchr(next, ';')) {
        char digits[64], kind[8], *end;
        double at_s = zero_s + strtod(++next, &end);
        unsigned long long time_us = (unsigned long long)(at_s * 1e6);
        if (*end != ':' || at_s > now_s() || time_us <= seen_us) continue;
        snprintf(kind, sizeof kind, "%.*s", (int)strcspn(text, ";"), text);
        snprintf(digits, sizeof digits, "%s:%.*s", kind, (int)strcspn(end + 1, ";"), end + 1);
        if (found == BUFFER) memmove(out, out + 1, --found * sizeof *out);
        if (!decode(digits, type, &out[found].value)) out[found++].time_us = time_us;
    }
    return found;
}

Return nvmlDeviceGetSamples(Device *device, unsigned kind, unsigned long long seen_us, unsigned *type, unsigned *count, BufferSample *out) {
    GPU_CALL(device);
    static BufferSample all[BUFFER];
    char key[SCOPE + 16];
    snprintf(key, sizeof key, "%s.samples.%u", scope, kind);
    unsigned place = *place_of(key), found = 0;
    if (!place) return NOT_SUPPORTED;
    Line *first = &lines[place - 1];
    if (!strncmp(first->value, "error:", 6)) return (Return)atoi(first->value + 6);
    long long round = length_s > 0 ? (long long)((now_s() - began_s) / length_s) : 0;
    for (long long r = round > 0 ? round - 1 : 0; r <= round; r++)
        for (Line *line = first; line < lines + line_count && !by_key(line, first); line++)
            found = samples_of(line->value, began_s + (double)r * length_s, seen_us, type, all, found);
    if (!found) return NOT_FOUND;
    unsigned room = *count;
    *count = out ? found : BUFFER;
    if (out && room < found) return INSUFFICIENT_SIZE;
    if (out) memcpy(out, all, found * sizeof *out);
    return SUCCESS;
}

/* --- processes: the first call asks for the size ------------------------------------------------ */

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
Return nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *out) {
    GPU_CALL(device);
    const char *list = find("%s.processes", scope);
    if (!list) return NOT_SUPPORTED;
    unsigned found = *list ? 1 : 0;
    for (const char *c = list; *c; c++) found += *c == ',';
    unsigned room = *count;
    *count = found;
    if (room < found) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < found; i++, list = strchr(list, ',') + 1) {
        char *end;
        unsigned pid = (unsigned)strtoul(list, &end, 10);
        out[i] = (Process){pid, *end == ':' ? strtoull(end + 1, NULL, 10) : ~0ull, ~0u, ~0u};
        if (i + 1 == found) break;
    }
    return SUCCESS;
}

/* --- GPM: two samples more than 100 ms apart ---------------------------------------------------- */

typedef struct { char scope[SCOPE]; double taken_s; } Sample;
typedef struct { unsigned id; Return result; double value; const char *name, *long_name, *unit; } Metric;
typedef struct { unsigned version, count; Sample *older, *newer; Metric metrics[]; } MetricsGet;
typedef struct { unsigned version, supported; } GpmSupport;

Return nvmlGpmQueryDeviceSupport(Device *device, GpmSupport *out) {
    GPU_CALL(device);
    long long value = 0;
    if (out->version != 1) return VERSION_MISMATCH;
    number(scope, "gpm_supported", &value);
    out->supported = (unsigned)value;
    return SUCCESS;
}
Return nvmlGpmSampleAlloc(Sample **out) {
    Return entered = enter_driver(__func__);
    if (!entered) *out = calloc(1, sizeof **out);
    return entered;
}
Return nvmlGpmSampleFree(Sample *sample) {
    Return entered = enter_driver(__func__);
    free(sample);
    return entered;
}
Return nvmlGpmSampleGet(Device *device, Sample *sample) {
    GPU_CALL(device);
    memcpy(sample->scope, scope, sizeof scope);
    sample->taken_s = now_s();
    return SUCCESS;
}
Return nvmlGpmMigSampleGet(Device *device, unsigned gpu_instance, Sample *sample) {
    GPU_CALL(device);
    for (int m = 0; m < MAX_MIG; m++) {
        const char *id = find("%s.mig.%d.gpu_instance_id", scope, m);
        if (!id || (unsigned)atoi(id) != gpu_instance) continue;
        if (snprintf(sample->scope, SCOPE, "%.40s.mig.%d", scope, m) >= SCOPE) break;
        sample->taken_s = now_s();
        return SUCCESS;
    }
    return NOT_FOUND;
}
Return nvmlGpmMetricsGet(MetricsGet *get) {
    Return entered = enter_driver(__func__);
    if (entered) return entered;
    if (get->version != 1) return VERSION_MISMATCH;
    if (!get->older->taken_s || strcmp(get->older->scope, get->newer->scope)) return INVALID_ARGUMENT;
    if (get->newer->taken_s - get->older->taken_s <= 0.1) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < get->count; i++) {
        Metric *metric = &get->metrics[i];
        const char *value = find("%s.gpm.%u", get->newer->scope, metric->id);
        metric->result = !value ? NOT_SUPPORTED : !strncmp(value, "error:", 6) ? (Return)atoi(value + 6) : SUCCESS;
        metric->value = metric->result ? 0 : strtod(value, NULL);
    }
    return SUCCESS;
}

/* --- events: each of the file once, XIDs first -------------------------------------------------- */

typedef struct { Device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;
enum { EVENT_XID = 8 };

/* The next event of a device, if the file has one that it was registered for. */
static int next_event(Device *device, const char *scope, Event *out) {
    const char *xid = find("%s.xid.%u", scope, device->xids_delivered);
    if (xid && device->registered & EVENT_XID) {
        device->xids_delivered++;
        *out = (Event){device, EVENT_XID, strtoull(xid, NULL, 10), ~0u, ~0u};
        return 1;
    }
    const char *other = find("%s.event.%u", scope, device->events_delivered);
    if (!other) return 0;
    char *data;
    unsigned long long type = strtoull(other, &data, 0);
    if (!(device->registered & type)) return 0;
    device->events_delivered++;
    *out = (Event){device, type, *data == ':' ? strtoull(data + 1, NULL, 0) : 0, ~0u, ~0u};
    return 1;
}

Return nvmlEventSetCreate(void **out) {
    static int set;
    Return entered = enter_driver(__func__);
    *out = &set;
    return entered;
}
Return nvmlEventSetFree(void *set) { return (void)set, enter_driver(__func__); }
Return nvmlDeviceRegisterEvents(Device *device, unsigned long long types, void *set) {
    GPU_CALL(device);
    (void)set;
    long long supported = 0;
    Return result = number(scope, "supported_events", &supported);
    if (!result && types & ~(unsigned long long)supported) result = NOT_SUPPORTED;
    device->registered = result ? 0 : types;
    return result;
}
Return nvmlEventSetWait_v2(void *set, Event *out, unsigned timeout_ms) {
    (void)set;
    Return entered = enter_driver(__func__);
    if (entered) return entered;
    for (Device *d = devices; d < devices + MAX_DEVICES && d->uuid[0]; d++) {
        if (d->registered && *scope_of(d) && next_event(d, d->scope, out)) return SUCCESS;
    }
    if (timeout_ms) usleep(timeout_ms * 1000u);
    return TIMEOUT;
}

/* --- MIG ---------------------------------------------------------------------------------------- */

Return nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    GPU_CALL(device);
    long long value = 0;
    Return result = number(scope, "mig_mode", &value);
    *current = *pending = (unsigned)value;
    return result;
}
Return nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **out) {
    GPU_CALL(device);
    char instance[SCOPE];
    if (snprintf(instance, sizeof instance, "%.40s.mig.%u", scope, index) >= SCOPE) return INVALID_ARGUMENT;
    return handle_of(instance, out);
}
typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} Attributes;
Return nvmlDeviceGetAttributes_v2(Device *device, Attributes *out) {
    GPU_CALL(device);
    static const char *const keys[] = {"gpu_slices", "compute_slices", "memory_mib"};
    long long v[3] = {0};
    Return result = numbers(scope, 3, keys, v);
    *out = (Attributes){.gpu_slices = (unsigned)v[0], .compute_slices = (unsigned)v[1], .memory_mib = (unsigned long long)v[2]};
    return result;
}
