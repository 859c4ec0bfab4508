/*
 * Traces functions of a guest from inside QEMU's translator, without stopping the guest.
 *
 * QEMU loads it when it starts, without anything to trace. A client connects to the socket that the argument
 * "socket" names, and passes a memory file with a request: addresses, and small programs that read registers
 * and memory there. Each vCPU writes the records of its hits into a ring of its own in that file. A trace
 * ends with its connection. `wire.py` has the layout of the file, `operations.py` the operations.
 *
 * A plugin can have QEMU translate code again only in a callback of a vCPU, so a request waits until a vCPU
 * becomes idle or resumes; it is enough to pause and resume the guest.
 *
 * A request can also have a program run each time that a vCPU has executed so many instructions: a profile.
 *
 * `coverage.c` has the other thing that a client can ask for: which code the guest executes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "coverage.h"
#include "qemu.h"

EXPORT int qemu_plugin_version = API;

/* The client's side; wire.py has the same layouts. */

#define MAGIC 0x31544d56u /* "VMT1" */
enum { REGISTERS = 1, MEMORY = 2, SAMPLES = 4 };    /* features */
enum { DROP = 1, COUNT_ONLY = 2, CACHE_CONTEXT = 4 };
/* Kinds of places; at the three after HIT, the task of a vCPU or the name of some task changes. SAMPLE is no place. */
enum { HIT, TASK_CHANGES, TASK_CHANGED, NAME_CHANGES, SAMPLE };
enum { HAS_CONTEXT = 1, HAS_CLOCK = 2, HAS_RET = 4, PADDING = 8 };

struct hello { uint32_t magic, features, vcpus, api; };

struct request {                            /* at the start of the file */
    uint32_t magic, flags;
    uint64_t ring_bytes, limit, cpus_at, counts_at, rings_at;
    uint64_t places_at, ranges_at, exits_at, thunks_at, code_at, text_at, registers_at;
    uint32_t places, ranges, exits, thunks, code, text, registers, counts;
    uint32_t context_code, clock_code, stack_register, period;      /* period: instructions between samples */
    uint64_t physical_base_at, direct_map_at, direct_map;   /* see `find_ram` */
    /* written by the plugin */
    uint64_t seen, dropped, unevaluated, unpaired, started;
};
struct ring { uint64_t head; uint32_t waiting, unused[13]; uint64_t tail, unused2[7]; };
struct place_request { uint64_t address; uint32_t kind, probe, code, first_range, ranges, unused; };
struct range { uint64_t low, high; };
/* An instruction that may leave a function: its bytes under a mask; a jump has an operand of `size` bytes. */
struct exit_pattern { uint8_t length, bytes[4], mask[4], at, size, unused[5]; };
struct op { uint8_t code, size; uint16_t number; uint32_t target; uint64_t value; };
struct record {
    uint32_t bytes; uint16_t probe, cpu;
    uint64_t time, clock, left, ret, present;
    uint32_t flags, unused;
    int64_t pid; char comm[16];
};

enum opcode {
    END, FAIL_TO, REGISTER, CONSTANT, LOAD, EXTEND, DUPLICATE, DISCARD, ADD, SUBTRACT, MULTIPLY, DIVIDE, MODULO,
    DIVIDE_SIGNED, MODULO_SIGNED, AND, OR, EXCLUSIVE_OR, SHIFT_LEFT, SHIFT_RIGHT, SHIFT_RIGHT_SIGNED, NEGATE,
    INVERT, NOT, EQUAL, LESS, LESS_SIGNED, LESS_OR_EQUAL, LESS_OR_EQUAL_SIGNED, JUMP, JUMP_IF_ZERO,
    PUT, PUT_STRING, PUT_MEMORY, FILTER, SAME_STRING, CPU, PUT_REGISTER, PUT_STACK, PC, PUT_FRAMES,
    OPCODES
};

#define STACK 32
#define STRING 256                          /* STRING_LIMIT of gdbinit/vmd_expression.py */
#define RECORD 49152
#define PAGE 4096
#define SHARDS 32                           /* of the calls that have not returned; powers of two */
#define OPEN 512
#define SESSIONS 16
#define REGISTER_NAMES 256
#define NAME 16
#define KERNEL_HALF 0xffff000000000000ull
#define KERNEL_MAP 0xffffffff80000000ull
#define USER_END (1ull << 56)
#define IMAGE (64ull << 20)                 /* how far the kernel's code may be from its variables */
#define MOST_FRAMES 512
#define ADDRESS_BITS 0x000ffffffffff000ull  /* of an entry of a page table */
#define LA57 (1ull << 12)                   /* of cr4 */
#define FIRST_RAM 0x100000ull               /* physical addresses that are RAM on every PC that has so much */
#define LAST_RAM 0x80000000ull
#define RETRY_NS 50000000
#define CLOCK_NS 250000                     /* how old the guest's time of a hit may be; a tick takes 1 to 10 ms */

struct place {
    struct session *session;
    struct place_request request;
    const struct range *ranges;
};

struct kept { struct record *record; size_t room; };
struct open_call { uint64_t sp; uint32_t probe, used; struct kept kept; };
struct shard { int locked; struct open_call open[OPEN]; };

/* Where the guest's RAM is in QEMU's memory: physical addresses below `end` are at `base`. */
struct ram { const char *base; uint64_t end, direct_map; struct qemu_plugin_register *cr3; int first_shift; };

struct session {
    int socket;
    bool active, installed, finishing;      /* active is read by vCPUs */
    bool answered;                          /* whether the client is there; under `lock` */
    pthread_t finisher;
    char *base;
    size_t size;
    struct request *shared, request;        /* our copy, which the client cannot change */
    struct ring *rings;
    uint64_t *counts;
    struct place *places;
    struct range *ranges;
    struct exit_pattern *exits;
    uint64_t *thunks;
    struct op *code;
    char *text;
    struct qemu_plugin_register **registers;
    uint64_t clock, clock_read, generation;
    struct context { uint64_t generation; bool changing, ok; int64_t pid; char comm[16]; char pad[24]; } *contexts;
    const void *code_host;                  /* an instruction of the kernel in QEMU's memory, and its address */
    uint64_t code_at;
    struct ram ram;
    int ram_known;                          /* whether `find_ram` has set `ram` */
    uint64_t ram_next;                      /* when to try it again: the kernel makes its direct map when it boots */
    struct shard *shards;                   /* calls that have not returned */
    pthread_mutex_t lock;                   /* of a vCPU that waits for room */
    pthread_cond_t room;
};

struct vcpu {
    struct session *in;
    struct array *registers, *memory;
    uint64_t values[REGISTER_NAMES], page_table, pc;
    bool known[REGISTER_NAMES], page_table_known;
    struct kept spare;
    char record[RECORD] __attribute__((aligned(8)));
};

static plugin_id self;
static bool x86_64, expedited;              /* whether membarrier() can replace the barriers of `enter` */
static int vcpus;
static struct vcpu *states;
static int listener = -1;
static struct { char name[NAME]; struct qemu_plugin_register *handle; } names[REGISTER_NAMES];
static unsigned named;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* of `sessions` */
static struct session *sessions[SESSIONS];
static unsigned wanted, applied, resetting;                 /* generations; atomic */

/* The translation callback reads these; they change only while no vCPU runs. */
static struct entry { uint64_t address; struct place *place; } *entries;
static size_t entry_count;
static struct span { struct range range; struct place *place; } *spans;
static size_t span_count;
static uint64_t filter[1024];
static struct place *sampled;               /* whose program runs each `period` instructions */
static struct counter executed;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void tell(struct session *s, char what)
{
    send(s->socket, &what, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Reading the guest */

static uint64_t value_of(struct vcpu *v, struct qemu_plugin_register *handle)
{
    uint64_t value = 0;
    v->registers->len = 0;
    qemu_plugin_read_register(handle, v->registers);
    memcpy(&value, v->registers->data, v->registers->len < 8 ? v->registers->len : 8);
    return value;
}

static struct qemu_plugin_register *register_named(const char *name)
{
    for (unsigned i = 0; i < named; i++)
        if (!strncmp(names[i].name, name, NAME))
            return names[i].handle;
    return NULL;
}

static const char *read_slowly(struct vcpu *v, uint64_t address, size_t size)
{
    bool ok = qemu_plugin_read_memory_vaddr && qemu_plugin_read_memory_vaddr(address, v->memory, size)
        && v->memory->len >= size;
    return ok ? v->memory->data : NULL;
}

/*
 * Walk x86's page tables (Intel's manual, volume 3A, 5.5); they must be in RAM. Return the physical address of
 * the page, and its size; 0 if there is none.
 */
static uint64_t walk(struct vcpu *v, const struct ram *ram, uint64_t address, uint64_t *size)
{
    if (!v->page_table_known) {
        v->page_table = value_of(v, ram->cr3) & ADDRESS_BITS;
        v->page_table_known = true;
    }
    uint64_t table = v->page_table;
    for (int shift = ram->first_shift; table && table < ram->end; shift -= 9) {
        uint64_t entry;
        memcpy(&entry, ram->base + table + (address >> shift & 511) * 8, 8);
        bool large = entry & 0x80 && (shift == 30 || shift == 21);
        if (!(entry & 1))
            return 0;
        *size = 1ull << shift;
        if (large || shift == 12)
            return entry & ADDRESS_BITS & ~(*size - 1);
        table = entry & ADDRESS_BITS;
    }
    return 0;
}

static const char *in_ram(struct vcpu *v, const struct ram *ram, uint64_t address, size_t size)
{
    uint64_t at = address - ram->direct_map;
    if (at >= ram->end) {
        uint64_t page = 0, begin = walk(v, ram, address, &page);
        at = begin + (address & (page - 1));
        if (!begin || (address & (page - 1)) + size > page)
            return NULL;
    }
    return at >= FIRST_RAM && at + size <= ram->end ? ram->base + at : NULL;
}

/* Return memory of the guest, until it is read again or a callback ends; NULL if it cannot be read. */
static const char *read_memory(struct vcpu *v, struct session *s, uint64_t address, size_t size)
{
    const char *found = NULL;
    if (__atomic_load_n(&s->ram_known, __ATOMIC_ACQUIRE))
        found = in_ram(v, &s->ram, address, size);
    return found ? found : read_slowly(v, address, size);
}

static bool read_word(struct vcpu *v, uint64_t address, uint64_t *word)
{
    const char *found = address ? read_slowly(v, address, sizeof *word) : NULL;
    if (found)
        memcpy(word, found, sizeof *word);
    return found;
}

/* Return the end of the part of QEMU's memory that an address is in. */
static uint64_t mapping_end(const void *of)
{
    uint64_t low, high, end = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &low, &high) == 2 && (uint64_t)of >= low && (uint64_t)of < high)
            end = high;
    if (maps)
        fclose(maps);
    return end;
}

/*
 * QEMU's functions need 200 ns to read memory. So find the RAM in QEMU's memory by an instruction of the kernel,
 * and use it if both ways read the same. See Documentation/arch/x86/x86_64/mm.rst for the kernel's addresses.
 */
static void find_ram(struct vcpu *v, struct session *s)
{
    struct request *r = &s->request;
    uint64_t base, direct = r->direct_map, end = mapping_end(s->code_host), code[4], data = 0, again = 0;
    __atomic_store_n(&s->ram_next, now() + RETRY_NS, __ATOMIC_RELAXED);
    struct qemu_plugin_register *cr3 = register_named("cr3"), *cr4 = register_named("cr4");
    if (x86_64 && cr3 && cr4 && end && read_word(v, r->physical_base_at, &base)
        && (!r->direct_map_at || read_word(v, r->direct_map_at, &direct)) && direct) {
        uint64_t physical = s->code_at - KERNEL_MAP + base, at = r->physical_base_at - KERNEL_MAP + base;
        int shift = value_of(v, cr4) & LA57 ? 48 : 39;
        s->ram = (struct ram){(const char *)s->code_host - physical, 0, direct, cr3, shift};
        uint64_t room = end - (uint64_t)s->ram.base;
        s->ram.end = room < LAST_RAM ? room : LAST_RAM;
        const char *found = physical < s->ram.end ? read_slowly(v, s->code_at, sizeof code) : NULL;
        if (found && !memcmp(found, s->code_host, sizeof code) && at < s->ram.end
            && read_word(v, direct + at, &data) && data == base) {
            memcpy(&again, s->ram.base + at, 8);
            __atomic_store_n(&s->ram_known, again == base, __ATOMIC_RELEASE);
        }
    }
}

static uint64_t read_register(struct vcpu *v, struct session *s, unsigned number)
{
    if (!v->known[number]) {
        v->values[number] = value_of(v, s->registers[number]);
        v->known[number] = true;
    }
    return v->values[number];
}

/* Append a string as its length and its bytes, without the 0; or as -1 and its address if it cannot be read. */
static size_t put_string(struct vcpu *v, struct session *s, uint64_t address, char *out)
{
    size_t length = 0;
    bool ended = false, ok = false;
    while (!ended && length < STRING) {
        size_t part = 64 - ((address + length) & 63);       /* within one page */
        part = part < STRING - length ? part : STRING - length;
        const char *found = read_memory(v, s, address + length, part);
        if (!found)
            break;
        ok = true;
        size_t used = strnlen(found, part);
        memcpy(out + 8 + length, found, used);
        length += used;
        ended = used < part;
    }
    int64_t stored = ok ? (int64_t)length : -1;
    memcpy(out, &stored, 8);
    if (!ok) {
        memcpy(out + 8, &address, 8);
        return 16;
    }
    return (8 + length + 7) & ~(size_t)7;
}

/*
 * Append the stack from a stack pointer to its end: the address, the number of bytes, and these. If it is the
 * stack of interrupts, append also the one that the kernel used before: its address is in the last word. Then a
 * 0 follows.
 */
static size_t put_stack(struct vcpu *v, struct session *s, uint64_t sp, uint64_t last_word, uint64_t stack_size,
                        char *out, size_t room)
{
    size_t put = 0;
    for (int stacks = 0; stacks < 2 && sp >= KERNEL_HALF && stack_size; stacks++) {
        bool interrupt = last_word - sp < stack_size;
        uint64_t end = interrupt ? last_word + 8 : (sp | (stack_size - 1)) + 1, length = 0, next = 0;
        char *at = out + put + 16;
        while (sp + length < end && put + 16 + length + PAGE + 8 < room) {
            uint64_t from = sp + length, part = PAGE - (from & (PAGE - 1));
            part = part < end - from ? part : end - from;
            const char *found = read_memory(v, s, from, part);
            if (!found)
                break;
            memcpy(at + length, found, part);
            length += part;
        }
        memcpy(out + put, &sp, 8);
        memcpy(out + put + 8, &length, 8);
        put += 16 + length;
        if (!interrupt || sp + length < end)
            break;
        memcpy(&next, at + (last_word - sp), 8);
        sp = next & ~7ull;
    }
    memset(out + put, 0, 8);
    return put + 8;
}

/* Append the number of callers in user space, and where they are returned to: a chain of frame pointers. */
static size_t put_frames(struct vcpu *v, struct session *s, uint64_t bp, uint64_t most, char *out)
{
    uint64_t count = 0, frame[2];
    while (count < most && bp >= PAGE && bp < USER_END && !(bp & 7)) {
        const char *found = read_memory(v, s, bp, sizeof frame);
        if (!found)
            break;
        memcpy(frame, found, sizeof frame);
        if (!frame[1] || frame[1] >= USER_END)
            break;
        memcpy(out + 8 + 8 * count++, &frame[1], 8);
        if (frame[0] <= bp)
            break;
        bp = frame[0];
    }
    memcpy(out, &count, 8);
    return 8 + 8 * count;
}

static uint64_t extended(uint64_t value, unsigned bits, bool is_signed)
{
    if (bits >= 64)
        return value;
    value &= (1ull << bits) - 1;
    return is_signed && value >> (bits - 1) ? value | ~0ull << bits : value;
}

static bool same_string(struct vcpu *v, struct session *s, uint64_t address, const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        size_t part = 64 - ((address + at) & 63);
        part = part < size - at ? part : size - at;
        const char *found = read_memory(v, s, address + at, part);
        if (!found || memcmp(found, text + at, part))
            return false;
        at += part;
    }
    return true;
}

/*
 * Run a program. Return the number of bytes that it put into `out`; -1 if FILTER ended it; -2 if an operation
 * failed without a FAIL_TO (unreadable memory, division by 0). `top` gets the value that is left on the stack.
 */
static long run(struct session *s, struct vcpu *v, unsigned cpu, uint32_t at, char *out, size_t room,
                uint64_t *present, uint64_t *top)
{
    uint64_t stack[STACK + 2];
    unsigned n = 0;
    size_t put = 0;
    uint32_t fail = UINT32_MAX;
    const char *found;
    for (;; at++) {
        const struct op *op = &s->code[at];
        if (n > STACK)
            return -2;
        uint64_t a = n ? stack[n - 1] : 0, b = n > 1 ? stack[n - 2] : 0, result;
        switch ((enum opcode)op->code) {
        case END:
            if (top)
                *top = a;
            return (long)put;
        case FAIL_TO: fail = op->target; continue;
        case REGISTER: stack[n++] = read_register(v, s, op->number); continue;
        case CONSTANT: stack[n++] = op->value; continue;
        case CPU: stack[n++] = cpu; continue;
        case PC: stack[n++] = v->pc; continue;
        case DUPLICATE: stack[n++] = a; continue;
        case DISCARD: n -= n > 0; continue;
        case LOAD:
            found = n ? read_memory(v, s, a + op->value, op->size) : NULL;
            if (!found)
                goto failed;
            result = 0;
            memcpy(&result, found, op->size);
            stack[n - 1] = extended(result, 8 * op->size, op->number);
            continue;
        case EXTEND:
            if (n)
                stack[n - 1] = extended(a >> op->value, op->size, op->number);
            continue;
        case NEGATE: if (n) stack[n - 1] = -a; continue;
        case INVERT: if (n) stack[n - 1] = ~a; continue;
        case NOT: if (n) stack[n - 1] = !a; continue;
        case JUMP: at = op->target - 1; continue;
        case JUMP_IF_ZERO:
            n -= n > 0;
            if (!a)
                at = op->target - 1;
            continue;
        case FILTER:
            n -= n > 0;
            if (!a)
                return -1;
            continue;
        case SAME_STRING:
            if (n)
                stack[n - 1] = same_string(v, s, a, s->text + op->target, op->value);
            continue;
        case PUT_REGISTER:
            if (put + 8 > room)
                goto failed;
            a = read_register(v, s, op->target);
            memcpy(out + put, &a, 8);
            put += 8;
            if (present)
                *present |= 1ull << (op->number & 63);
            continue;
        case PUT:
            if (put + 8 > room)
                goto failed;
            memcpy(out + put, &a, 8);
            goto have;
        case PUT_STRING:
            if (put + STRING + 16 > room)
                goto failed;
            put += put_string(v, s, a, out + put);
            goto have_all;
        case PUT_MEMORY:
            found = put + ((op->value + 7) & ~7ull) <= room ? read_memory(v, s, a, op->value) : NULL;
            if (!found)
                goto failed;
            memcpy(out + put, found, op->value);
            put += (op->value + 7) & ~7ull;
            goto have_all;
        case PUT_STACK:
            if (put + PAGE + 64 > room)
                goto failed;
            put += put_stack(v, s, a & ~7ull, b, op->value, out + put, room - put);
            n -= n > 0;
            goto have_all;
        case PUT_FRAMES:
            if (put + 8 * (MOST_FRAMES + 1) > room)
                goto failed;
            put += put_frames(v, s, a, op->value, out + put);
            goto have_all;
        have:
            put += 8;
        have_all:
            n -= n > 0;
            if (present)
                *present |= 1ull << (op->number & 63);
            continue;
        case ADD: result = b + a; break;
        case SUBTRACT: result = b - a; break;
        case MULTIPLY: result = b * a; break;
        case DIVIDE: if (!a) goto failed; result = b / a; break;
        case MODULO: if (!a) goto failed; result = b % a; break;
        case DIVIDE_SIGNED: if (!a) goto failed; result = a == -1ull ? -b : (uint64_t)((int64_t)b / (int64_t)a); break;
        case MODULO_SIGNED: if (!a) goto failed; result = a == -1ull ? 0 : (uint64_t)((int64_t)b % (int64_t)a); break;
        case AND: result = b & a; break;
        case OR: result = b | a; break;
        case EXCLUSIVE_OR: result = b ^ a; break;
        case SHIFT_LEFT: result = a < 64 ? b << a : 0; break;
        case SHIFT_RIGHT: result = a < 64 ? b >> a : 0; break;
        case SHIFT_RIGHT_SIGNED: result = (uint64_t)((int64_t)b >> (a < 64 ? a : 63)); break;
        case EQUAL: result = b == a; break;
        case LESS: result = b < a; break;
        case LESS_SIGNED: result = (int64_t)b < (int64_t)a; break;
        case LESS_OR_EQUAL: result = b <= a; break;
        case LESS_OR_EQUAL_SIGNED: result = (int64_t)b <= (int64_t)a; break;
        default: return -2;
        }
        if (n < 2)
            return -2;
        stack[--n - 1] = result;
        continue;
    failed:
        if (fail == UINT32_MAX)
            return -2;
        at = fail - 1;
        n = 0;
    }
}

/* Rings */

static bool write_record(struct session *s, unsigned cpu, const struct record *record)
{
    struct ring *ring = &s->rings[cpu];
    uint64_t size = s->request.ring_bytes, head = ring->head, bytes = record->bytes;
    uint64_t gap = size - (head & (size - 1)), whole = gap < bytes ? gap + bytes : bytes;
    while (head + whole - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) > size) {
        if (s->request.flags & DROP)
            return false;
        __atomic_store_n(&ring->waiting, 1, __ATOMIC_SEQ_CST);
        tell(s, 'd');
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_mutex_lock(&s->lock);
        if (head + whole - __atomic_load_n(&ring->tail, __ATOMIC_SEQ_CST) > size && s->answered)
            pthread_cond_timedwait(&s->room, &s->lock, &until);
        bool gone = !s->answered;
        pthread_mutex_unlock(&s->lock);
        if (gone)
            return false;
    }
    char *at = (char *)s->base + s->request.rings_at + cpu * size;
    for (uint64_t next = 0; next < 2 * bytes && next < 1024; next += 64)    /* for the next record */
        __builtin_prefetch(at + ((head + whole + next) & (size - 1)), 1);
    if (whole != bytes) {
        struct record pad = {.bytes = (uint32_t)gap, .flags = PADDING};
        memcpy(at + (head & (size - 1)), &pad, gap < sizeof pad ? gap : sizeof pad);
    }
    memcpy(at + ((head + whole - bytes) & (size - 1)), record, bytes);
    __atomic_store_n(&ring->head, head + whole, __ATOMIC_RELEASE);
    uint64_t quarter = size / 4;
    if (head / quarter != (head + whole) / quarter)
        tell(s, 'd');
    return true;
}

static void put_record(struct session *s, unsigned cpu, const struct record *record)
{
    if (!write_record(s, cpu, record))
        __atomic_fetch_add(&s->shared->dropped, 1, __ATOMIC_RELAXED);
}

/* Calls that have not returned, by stack pointer and probe: each task has its own stack. */

static size_t slot_of(uint64_t sp, uint32_t probe)
{
    return (size_t)(((sp >> 3) ^ (uint64_t)probe << 20) * 0x9e3779b97f4a7c15ull >> 32) & (OPEN - 1);
}

static struct shard *lock_shard(struct session *s, uint64_t sp)
{
    struct shard *shard = &s->shards[((sp >> 14) * 0x9e3779b97f4a7c15ull >> 32) & (SHARDS - 1)];
    for (unsigned spins = 1; __atomic_exchange_n(&shard->locked, 1, __ATOMIC_ACQUIRE); spins++)
        if (spins % 64 == 0)
            sched_yield();
    return shard;
}

static void unlock(struct shard *shard) { __atomic_store_n(&shard->locked, 0, __ATOMIC_RELEASE); }

/* Return the slot of a call, or a free one; NULL if the table is full. Linear probing; the caller has the lock. */
static struct open_call *find_open(struct shard *shard, uint64_t sp, uint32_t probe)
{
    size_t at = slot_of(sp, probe);
    for (size_t i = 0; i < OPEN; i++) {
        struct open_call *c = &shard->open[(at + i) & (OPEN - 1)];
        if (!c->used || (c->sp == sp && c->probe == probe))
            return c;
    }
    return NULL;
}

static void swap(struct kept *a, struct kept *b)
{
    struct kept kept = *a;
    *a = *b;
    *b = kept;
}

static void close_slot(struct shard *shard, struct open_call *c)
{
    /* Move later entries of the same run back: a search ends at the first free slot. */
    size_t hole = (size_t)(c - shard->open);
    for (size_t n = 1; n < OPEN; n++) {
        size_t i = (size_t)(c - shard->open + n) & (OPEN - 1);
        if (!shard->open[i].used)
            break;
        size_t home = slot_of(shard->open[i].sp, shard->open[i].probe);
        if (((i - home) & (OPEN - 1)) >= ((i - hole) & (OPEN - 1))) {
            struct kept kept = shard->open[hole].kept;
            shard->open[hole] = shard->open[i];
            shard->open[i].kept = kept;
            hole = i;
        }
    }
    shard->open[hole].used = 0;
}

/* Copy a record into memory that is used again. */
static bool keep(struct kept *kept, const struct record *record)
{
    if (kept->room < record->bytes) {
        free(kept->record);
        kept->room = (record->bytes + 255) & ~255u;
        kept->record = malloc(kept->room);
        if (!kept->record)
            kept->room = 0;
    }
    if (kept->record)
        memcpy(kept->record, record, record->bytes);
    return kept->record;
}

static void open_call(struct session *s, struct vcpu *v, unsigned cpu, uint64_t sp, const struct record *record)
{
    bool earlier = false, opened = false;
    struct shard *shard = lock_shard(s, sp);
    struct open_call *c = find_open(shard, sp, record->probe);
    if (c) {
        earlier = c->used;
        if (earlier)
            swap(&c->kept, &v->spare);
        opened = keep(&c->kept, record);
        c->sp = sp;
        c->probe = record->probe;
        c->used = 1;
        if (!opened)
            close_slot(shard, c);
    }
    unlock(shard);
    if (!opened) {
        __atomic_fetch_add(&s->shared->unpaired, 1, __ATOMIC_RELAXED);
        put_record(s, cpu, record);
    }
    if (earlier)
        put_record(s, cpu, v->spare.record);
}

/* Callbacks of instructions */

static void barrier(void)
{
    if (expedited)
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static bool enter(struct vcpu *v, struct session *s)
{
    __atomic_store_n(&v->in, s, __ATOMIC_RELAXED);
    barrier();                              /* `quiesce` has the other one */
    if (__atomic_load_n(&s->active, __ATOMIC_ACQUIRE))
        return true;
    __atomic_store_n(&v->in, NULL, __ATOMIC_RELEASE);
    return false;
}

static void leave(struct vcpu *v)
{
    __atomic_store_n(&v->in, NULL, __ATOMIC_RELEASE);
}

/* A callback reads each register once. */
static void forget_registers(struct vcpu *v, struct session *s)
{
    memset(v->known, 0, s->request.registers);
    v->page_table_known = false;
}

static void set_context(struct session *s, struct vcpu *v, unsigned cpu, struct record *record)
{
    if (s->request.context_code) {
        struct context *c = &s->contexts[cpu];
        uint64_t generation = __atomic_load_n(&s->generation, __ATOMIC_SEQ_CST);
        if (c->generation != generation) {
            struct { int64_t pid; char comm[16]; } found;
            c->ok = run(s, v, cpu, s->request.context_code, (char *)&found, sizeof found, NULL, NULL) == sizeof found;
            c->pid = found.pid;
            memcpy(c->comm, found.comm, sizeof c->comm);
            c->generation = s->request.flags & CACHE_CONTEXT && !c->changing ? generation : 0;
        }
        record->flags |= c->ok ? HAS_CONTEXT : 0;
        record->pid = c->pid;
        memcpy(record->comm, c->comm, sizeof c->comm);
    }
    if (s->request.clock_code) {
        uint64_t read = __atomic_load_n(&s->clock_read, __ATOMIC_RELAXED), clock;
        if (record->time - read > CLOCK_NS && run(s, v, cpu, s->request.clock_code, NULL, 0, NULL, &clock) == 0) {
            __atomic_store_n(&s->clock, clock, __ATOMIC_RELAXED);
            __atomic_store_n(&s->clock_read, record->time, __ATOMIC_RELAXED);
        }
        record->clock = __atomic_load_n(&s->clock, __ATOMIC_RELAXED);
        record->flags |= record->clock ? HAS_CLOCK : 0;
    }
}

static void record_hit(struct place *p, struct session *s, struct vcpu *v, unsigned cpu)
{
    struct record *record = (struct record *)v->record;
    uint64_t present = 0;
    forget_registers(v, s);
    if (!__atomic_load_n(&s->ram_known, __ATOMIC_RELAXED) && s->code_host
        && now() > __atomic_load_n(&s->ram_next, __ATOMIC_RELAXED))
        find_ram(v, s);
    long put = run(s, v, cpu, p->request.code, v->record + sizeof *record, RECORD - sizeof *record, &present, NULL);
    if (put == -2)
        __atomic_fetch_add(&s->shared->unevaluated, 1, __ATOMIC_RELAXED);
    if (put < 0)
        return;
    if (s->request.limit && __atomic_fetch_add(&s->shared->seen, 1, __ATOMIC_RELAXED) >= s->request.limit)
        return;
    if (s->request.flags & COUNT_ONLY) {
        s->counts[(size_t)cpu * s->request.counts + p->request.probe]++;
        return;
    }
    memset(record, 0, sizeof *record);
    record->bytes = (uint32_t)(sizeof *record + put);
    record->probe = (uint16_t)p->request.probe;
    record->cpu = (uint16_t)cpu;
    record->present = present;
    record->time = now();
    set_context(s, v, cpu, record);
    if (p->request.ranges)
        open_call(s, v, cpu, read_register(v, s, s->request.stack_register), record);
    else
        put_record(s, cpu, record);
}

static void on_hit(unsigned cpu, void *data)
{
    struct place *p = data;
    struct vcpu *v = &states[cpu];
    if (!enter(v, p->session))
        return;
    record_hit(p, p->session, v, cpu);
    leave(v);
}

/* A vCPU has executed `period` instructions. */
static void on_sample(unsigned cpu, void *pc)
{
    struct place *p = sampled;
    struct vcpu *v = &states[cpu];
    uint64_t *count = qemu_plugin_scoreboard_find(executed.board, cpu);
    if (p)
        *count %= p->session->request.period;
    if (!p || !enter(v, p->session))
        return;
    v->pc = (uint64_t)(uintptr_t)pc;
    record_hit(p, p->session, v, cpu);
    leave(v);
}

/* The function is about to return; the register after the stack pointer in the list has the result. */
static void left(unsigned cpu, struct place *p, bool returns)
{
    struct session *s = p->session;
    struct vcpu *v = &states[cpu];
    if (!enter(v, s))
        return;
    forget_registers(v, s);
    uint64_t sp = read_register(v, s, s->request.stack_register);
    struct shard *shard = lock_shard(s, sp);
    struct open_call *c = find_open(shard, sp, p->request.probe);
    bool found = c && c->used;
    if (found) {
        swap(&c->kept, &v->spare);
        close_slot(shard, c);
    }
    unlock(shard);
    if (found) {
        struct record *record = v->spare.record;
        record->left = now();
        if (returns) {
            record->ret = read_register(v, s, s->request.stack_register + 1);
            record->flags |= HAS_RET;
        }
        put_record(s, cpu, record);
    }
    leave(v);
}

static void on_return(unsigned cpu, void *place) { left(cpu, place, true); }
static void on_jump(unsigned cpu, void *place) { left(cpu, place, false); }

static void on_context(unsigned cpu, void *data)
{
    struct place *p = data;
    struct session *s = p->session;
    struct context *c = &s->contexts[cpu];
    if (!enter(&states[cpu], s))
        return;
    if (p->request.kind == NAME_CHANGES) {
        __atomic_fetch_add(&s->generation, 1, __ATOMIC_SEQ_CST);    /* the task may run on any vCPU */
    } else {
        c->generation = 0;
        c->changing = p->request.kind == TASK_CHANGES;
    }
    leave(&states[cpu]);
}

/* Translation */

static size_t hash(uint64_t address) { return (address * 0x9e3779b97f4a7c15ull) >> 48; }

static bool maybe(uint64_t address)
{
    size_t bit = hash(address);
    return filter[bit / 64] >> (bit % 64) & 1;
}

static int by_address(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->address, y = ((const struct entry *)b)->address;
    return x < y ? -1 : x > y;
}

/* Register callbacks of an instruction inside a function whose returns are recorded. */
static void instrument_exit(struct qemu_plugin_insn *insn, uint64_t address, struct place *p)
{
    struct session *s = p->session;
    uint8_t code[16];
    size_t size = code_of(insn, code, sizeof code);
    for (unsigned i = 0; i < s->request.exits; i++) {
        const struct exit_pattern *e = &s->exits[i];
        bool fits = size >= e->length;
        for (unsigned k = 0; fits && k < e->length; k++)
            fits = (code[k] & e->mask[k]) == e->bytes[k];
        if (!fits || e->at + e->size > size)
            continue;
        bool returns = e->size == 0;
        if (!returns) {
            uint64_t operand = 0;
            memcpy(&operand, code + e->at, e->size);
            uint64_t target = address + size + extended(operand, 8 * e->size, true);
            for (unsigned k = 0; k < p->request.ranges; k++)
                if (target >= p->ranges[k].low && target < p->ranges[k].high)
                    return;
            for (unsigned k = 0; k < s->request.thunks; k++)
                returns |= target == s->thunks[k];
        }
        bool changes = p->request.kind != HIT;
        qemu_plugin_register_vcpu_insn_exec_cb(insn, changes ? on_context : returns ? on_return : on_jump,
                                               changes ? NO_REGS : READ_REGS, p);
        return;
    }
}

/* Count the instructions of a block, and call `on_sample` before it if they are enough. */
static void count_instructions(struct qemu_plugin_tb *tb)
{
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0);
    struct session *s = sampled->session;
    uint64_t pc = qemu_plugin_insn_vaddr(first);
    if (!s->code_host && pc >= KERNEL_MAP && pc - s->request.physical_base_at + IMAGE < 2 * IMAGE) {
        s->code_at = pc;
        s->code_host = qemu_plugin_insn_haddr(first);
    }
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, INLINE_ADD, executed, qemu_plugin_tb_n_insns(tb));
    qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, on_sample, READ_REGS, IF_GREATER_OR_EQUAL, executed,
                                              s->request.period, (void *)(uintptr_t)pc);
}

ON_TRANSLATION(on_translation)
{
    size_t count = entry_count ? qemu_plugin_tb_n_insns(tb) : 0;
    coverage_translate(tb);
    if (sampled && qemu_plugin_tb_n_insns(tb))
        count_instructions(tb);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        for (size_t k = 0; k < span_count; k++)
            if (address >= spans[k].range.low && address < spans[k].range.high)
                instrument_exit(insn, address, spans[k].place);
        if (!maybe(address))
            continue;
        struct entry key = {address, NULL}, *e = bsearch(&key, entries, entry_count, sizeof *entries, by_address);
        while (e && e > entries && e[-1].address == address)
            e--;
        /* What changes the task comes first: it is a hit's task that changes. */
        for (int hits = 0; hits < 2; hits++)
            for (struct entry *k = e; k && k < entries + entry_count && k->address == address; k++) {
                struct session *s = k->place->session;
                bool reads = s->request.registers;
                if (!s->code_host && address >= KERNEL_MAP) {
                    s->code_at = address;
                    s->code_host = qemu_plugin_insn_haddr(insn);
                }
                if (hits == (k->place->request.kind == HIT))
                    qemu_plugin_register_vcpu_insn_exec_cb(insn, hits ? on_hit : on_context,
                                                           hits && reads ? READ_REGS : NO_REGS, k->place);
            }
    }
}

/* Sessions: one for each client */

static void free_session(struct session *s)
{
    if (s->base && s->base != MAP_FAILED)
        munmap(s->base, s->size);
    for (unsigned i = 0; s->shards && i < SHARDS * OPEN; i++)
        free(s->shards[i / OPEN].open[i % OPEN].kept.record);
    if (s->socket >= 0)
        close(s->socket);
    void *all[] = {s->places, s->ranges, s->exits, s->thunks, s->code, s->text, s->registers, s->contexts, s->shards};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(s);
}

static void register_callbacks(bool translation);

/* Called while no vCPU runs and no translated code is left. */
ON_RESET(on_reset)
{
    pthread_mutex_lock(&lock);
    applied = __atomic_load_n(&wanted, __ATOMIC_SEQ_CST);
    free(entries);
    free(spans);
    entries = NULL;
    spans = NULL;
    entry_count = span_count = 0;
    sampled = NULL;
    memset(filter, 0, sizeof filter);
    for (unsigned i = 0; i < SESSIONS; i++) {
        struct session *s = sessions[i];
        if (s && !s->answered) {            /* its client has gone */
            free_session(s);
            sessions[i] = NULL;
        } else if (s && s->active) {
            for (unsigned k = 0; k < s->request.places; k++) {
                struct place *p = &s->places[k];
                if (p->request.kind == SAMPLE) {
                    sampled = p;
                    continue;
                }
                entries = realloc(entries, (entry_count + 1) * sizeof *entries);
                entries[entry_count++] = (struct entry){p->request.address, p};
                size_t bit = hash(p->request.address);
                filter[bit / 64] |= 1ull << (bit % 64);
                for (unsigned j = 0; j < p->request.ranges; j++) {
                    spans = realloc(spans, (span_count + 1) * sizeof *spans);
                    spans[span_count++] = (struct span){p->ranges[j], p};
                }
            }
            if (!s->installed) {
                s->installed = true;
                s->shared->started = now();
                tell(s, 'r');
            }
        }
    }
    if (entry_count)
        qsort(entries, entry_count, sizeof *entries, by_address);
    /* QEMU up to 11 ends with a segmentation fault if the callback goes while a translation that uses it was
     * given up: the vCPU's state keeps the instruction (`plugin_insn` of accel/tcg/plugin-gen.c). So the first
     * trace leaves it, without instrumentation. */
    static bool translated;
    bool covers = coverage_reset();
    translated |= entry_count > 0 || covers || sampled;
    register_callbacks(translated);
    pthread_mutex_unlock(&lock);
    __atomic_store_n(&resetting, 0, __ATOMIC_SEQ_CST);
}

ON_VCPU(on_pause)
{
    (void)vcpu;
    if (__atomic_load_n(&wanted, __ATOMIC_RELAXED) == __atomic_load_n(&applied, __ATOMIC_RELAXED))
        return;
    if (!__atomic_exchange_n(&resetting, 1, __ATOMIC_SEQ_CST))
        qemu_plugin_reset(self, on_reset NULL_);
}

ON_VCPU(on_vcpu)
{
    struct vcpu *v = (int)vcpu < vcpus ? &states[vcpu] : NULL;
    if (v && g_byte_array_new) {
        v->registers = g_byte_array_new();
        v->memory = g_byte_array_new();
    }
    if (!qemu_plugin_get_registers || !g_array_get_element_size || named)
        return;
    struct array *all = qemu_plugin_get_registers();
    unsigned size = g_array_get_element_size(all);
    for (unsigned i = 0; i < all->len && named < REGISTER_NAMES; i++) {
        struct descriptor *d = (struct descriptor *)(all->data + (size_t)i * size);
        strncpy(names[named].name, d->name, NAME - 1);
        names[named++].handle = d->handle;
    }
}

static void register_callbacks(bool translation)
{
    qemu_plugin_register_vcpu_init_cb(self, on_vcpu NULL_);
    qemu_plugin_register_vcpu_idle_cb(self, on_pause NULL_);
    qemu_plugin_register_vcpu_resume_cb(self, on_pause NULL_);
    if (translation)
        qemu_plugin_register_vcpu_tb_trans_cb(self, on_translation NULL_);
}

static unsigned features(void)
{
    bool registers = qemu_plugin_get_registers && qemu_plugin_read_register && g_byte_array_new;
    bool counts = qemu_plugin_scoreboard_new && qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu
        && qemu_plugin_register_vcpu_tb_exec_cond_cb && qemu_plugin_scoreboard_find;
    return (registers ? REGISTERS : 0) | (qemu_plugin_read_memory_vaddr ? MEMORY : 0) | (counts ? SAMPLES : 0);
}

/* Copy a part of the client's file; NULL if it does not fit. */
static void *part(struct session *s, uint64_t at, uint64_t count, size_t size)
{
    if (at > s->size || count > (1u << 20) || count * size > s->size - at)
        return NULL;
    void *copy = malloc(count * size + 1);
    if (copy) {
        memcpy(copy, s->base + at, count * size);
        ((char *)copy)[count * size] = 0;
    }
    return copy;
}

static const char *check_code(struct session *s)
{
    struct request *r = &s->request;
    for (unsigned i = 0; i < r->code; i++) {
        struct op *op = &s->code[i];
        bool jumps = op->code == JUMP || op->code == JUMP_IF_ZERO || op->code == FAIL_TO;
        if (op->code >= OPCODES || (jumps && (op->target >= r->code || !op->target))
            || (op->code == REGISTER && op->number >= r->registers)
            || (op->code == PUT_REGISTER && op->target >= r->registers) || (op->code == LOAD && op->size > 8)
            || (op->code == SAME_STRING && (op->target > r->text || op->value > r->text - op->target))
            || (op->code == PUT_MEMORY && op->value > 4096) || (op->code == PUT_STACK && (op->value & (op->value - 1))) || (op->code == EXTEND && !op->size)
            || (op->code == PUT_FRAMES && op->value > MOST_FRAMES))
            return "an operation is not valid";
    }
    if (!r->code || s->code[r->code - 1].code != END || r->context_code >= r->code || r->clock_code >= r->code)
        return "the program has no end";
    return NULL;
}

static const char *find_registers(struct session *s)
{
    char (*names_wanted)[NAME] = part(s, s->request.registers_at, s->request.registers, NAME);
    s->registers = calloc(s->request.registers + 1, sizeof *s->registers);
    const char *error = !names_wanted || !s->registers || s->request.registers > REGISTER_NAMES ? "too many registers" : NULL;
    for (unsigned i = 0; !error && i < s->request.registers; i++) {
        s->registers[i] = register_named(names_wanted[i]);
        if (!s->registers[i])
            error = "this QEMU does not have a register that the trace reads";
    }
    free(names_wanted);
    return error;
}

static const char *prepare(struct session *s)
{
    struct request *r = &s->request;
    *r = *s->shared;
    uint64_t size = r->ring_bytes, n = (uint64_t)vcpus;
    if (r->magic != MAGIC || !size || (size & (size - 1)) || r->rings_at > s->size || size > (s->size - r->rings_at) / n
        || r->cpus_at > s->size || n * sizeof(struct ring) > s->size - r->cpus_at
        || r->counts_at > s->size || n * r->counts * 8 > s->size - r->counts_at)
        return "the request is not valid";
    s->rings = (struct ring *)(s->base + r->cpus_at);
    s->counts = (uint64_t *)(s->base + r->counts_at);
    struct place_request *places = part(s, r->places_at, r->places, sizeof *places);
    s->ranges = part(s, r->ranges_at, r->ranges, sizeof *s->ranges);
    s->exits = part(s, r->exits_at, r->exits, sizeof *s->exits);
    s->thunks = part(s, r->thunks_at, r->thunks, sizeof *s->thunks);
    s->code = part(s, r->code_at, r->code, sizeof *s->code);
    s->text = part(s, r->text_at, r->text, 1);
    s->places = calloc(r->places + 1, sizeof *s->places);
    s->contexts = calloc(n, sizeof *s->contexts);
    s->shards = calloc(SHARDS, sizeof *s->shards);
    const char *error = NULL;
    if (!places || !s->ranges || !s->exits || !s->thunks || !s->code || !s->text || !s->places || !s->contexts || !s->shards)
        error = "the request does not fit";
    for (unsigned i = 0; !error && i < r->exits; i++)
        if (s->exits[i].length > 4 || s->exits[i].size > 8)
            error = "an exit is not valid";
    for (unsigned i = 0; !error && i < r->places; i++) {
        struct place_request *p = &places[i];
        bool hit = p->kind == HIT || p->kind == SAMPLE;
        if (p->kind > SAMPLE || (p->kind == SAMPLE) != (r->period > 0))
            error = "a place is not valid";
        if (p->code >= r->code || (hit && p->probe >= r->counts) || p->first_range > r->ranges
            || p->ranges > r->ranges - p->first_range || (hit && p->ranges && r->stack_register + 1 >= r->registers))
            error = "a place is not valid";
        s->places[i] = (struct place){s, *p, s->ranges + p->first_range};
    }
    free(places);
    if (!error && r->period && !(features() & SAMPLES))
        error = "this QEMU's plugins cannot count instructions";
    if (!error && r->registers && !(features() & REGISTERS))
        error = "this QEMU's plugins cannot read registers";
    if (!error)
        error = check_code(s);
    return error ? error : find_registers(s);
}

static int receive_file(int from, char *what, ssize_t *got)
{
    char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {what, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    int fd = -1;
    *got = recvmsg(from, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = *got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

static void refuse(struct session *s, const char *why)
{
    tell(s, '!');
    send(s->socket, why, strlen(why), MSG_NOSIGNAL);
    shutdown(s->socket, SHUT_WR);
}

/* Begin a session: 'a' if it is accepted, or '!' and the reason. */
static void begin(struct session *s, int fd)
{
    struct stat found;
    const char *error = "the file is too small";
    if (fstat(fd, &found) == 0 && (size_t)found.st_size >= sizeof(struct request)) {
        s->size = (size_t)found.st_size;
        s->base = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        s->shared = (struct request *)s->base;
        error = s->base == MAP_FAILED ? "the file cannot be mapped" : prepare(s);
    }
    close(fd);
    if (error) {
        refuse(s, error);
        return;
    }
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; s->request.period && i < SESSIONS; i++)
        if (sessions[i] && sessions[i]->active && sessions[i]->request.period)
            error = "a profile is being taken already";
    if (!error) {
        tell(s, 'a');
        __atomic_store_n(&s->active, true, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&wanted, 1, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&lock);
    if (error)
        refuse(s, error);
}

/* End a session: no vCPU writes its records afterwards. */
static void quiesce(struct session *s)
{
    __atomic_store_n(&s->active, false, __ATOMIC_SEQ_CST);
    if (expedited)
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    for (int i = 0; i < vcpus; i++)
        while (__atomic_load_n(&states[i].in, __ATOMIC_SEQ_CST) == s) {
            struct timespec pause = {0, 100000};
            nanosleep(&pause, NULL);
        }
}

/* The client ends its trace: write the calls that have not returned. The client reads on until it gets 's'. */
static void *finish(void *data)
{
    struct session *s = data;
    quiesce(s);
    for (unsigned i = 0; s->shards && i < SHARDS * OPEN; i++) {
        struct open_call *c = &s->shards[i / OPEN].open[i % OPEN];
        if (c->used)
            put_record(s, c->kept.record->cpu, c->kept.record);
        c->used = 0;
    }
    tell(s, 's');
    return NULL;
}

/* The client is gone, so no vCPU may wait for it. on_reset frees the session, unless it was never installed. */
static void client_gone(struct session *s)
{
    pthread_mutex_lock(&s->lock);
    s->answered = false;
    pthread_cond_broadcast(&s->room);
    pthread_mutex_unlock(&s->lock);
    if (s->finishing)
        pthread_join(s->finisher, NULL);
    quiesce(s);
    pthread_mutex_lock(&lock);
    coverage_client_gone(s->socket);
    close(s->socket);
    s->socket = -1;
    for (unsigned i = 0; i < SESSIONS; i++)
        if (sessions[i] == s && !s->installed) {
            sessions[i] = NULL;             /* translated code never referred to it */
            free_session(s);
        }
    __atomic_fetch_add(&wanted, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&lock);
}

/* Answer a client's byte about coverage: record, pass the file, stop recording. */
static void serve_coverage(struct session *s, char what, int fd)
{
    const char *error = NULL;
    pthread_mutex_lock(&lock);
    if (what == 'c')
        error = coverage_begin(s->socket, fd, vcpus);
    else if (what == 'm')
        coverage_pass(s->socket);
    else
        coverage_end();
    if (what != 'm' && !error)
        __atomic_fetch_add(&wanted, 1, __ATOMIC_SEQ_CST);
    if (error)
        refuse(s, error);
    else if (what == 'c')
        tell(s, 'a');
    pthread_mutex_unlock(&lock);
}

/* Answer a client's byte; return whether it is still there. */
static bool serve(struct session *s)
{
    char what = 0;
    ssize_t got;
    int fd = receive_file(s->socket, &what, &got);
    if (got <= 0)
        return false;
    if (what == 'g' && fd >= 0 && !s->base)
        begin(s, fd);
    else if ((what == 'c' && fd >= 0) || what == 'm' || what == 'x')
        serve_coverage(s, what, fd);
    else if (fd >= 0)
        close(fd);
    if (what == 't') {
        pthread_mutex_lock(&s->lock);
        pthread_cond_broadcast(&s->room);
        pthread_mutex_unlock(&s->lock);
    }
    if (what == 'e' && s->base && !s->finishing)
        s->finishing = pthread_create(&s->finisher, NULL, finish, s) == 0;
    return true;
}

static void welcome(int fd)
{
    struct session *s = calloc(1, sizeof *s);
    struct hello hello = {MAGIC, features(), (uint32_t)vcpus, API};
    unsigned i = 0;
    pthread_mutex_lock(&lock);
    while (i < SESSIONS && sessions[i])
        i++;
    if (s && i < SESSIONS) {
        s->socket = fd;
        s->answered = true;
        s->generation = 1;
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->room, NULL);
        sessions[i] = s;
    }
    pthread_mutex_unlock(&lock);
    if (!s || i == SESSIONS) {
        free(s);
        close(fd);
        return;
    }
    send(fd, &hello, sizeof hello, MSG_NOSIGNAL);
}

static void *control(void *unused)
{
    (void)unused;
    for (;;) {
        struct pollfd wait[SESSIONS + 1] = {{.fd = listener, .events = POLLIN}};
        struct session *of[SESSIONS + 1];
        pthread_mutex_lock(&lock);
        for (unsigned i = 0; i < SESSIONS; i++) {
            of[i] = sessions[i] && sessions[i]->answered ? sessions[i] : NULL;
            wait[i + 1] = (struct pollfd){.fd = of[i] ? of[i]->socket : -1, .events = POLLIN};
        }
        pthread_mutex_unlock(&lock);
        if (poll(wait, SESSIONS + 1, -1) < 0)
            continue;
        for (unsigned i = 0; i < SESSIONS; i++)
            if (of[i] && wait[i + 1].revents && !serve(of[i]))
                client_gone(of[i]);
        if (wait[0].revents) {
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0)
                welcome(fd);
        }
    }
    return NULL;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, SESSIONS)) {
        close(fd);
        return -1;
    }
    return fd;
}

EXPORT int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "probe=on")) {
            printf("vmdebug-plugin %d %u %d %d\n", API, features(), info->version.min, info->version.cur);
            fflush(stdout);
            _exit(0);
        }
        if (!strncmp(argv[i], "socket=", 7))
            path = argv[i] + 7;
    }
    self = id;
    x86_64 = !strcmp(info->target, "x86_64");
    expedited = !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    vcpus = info->max_vcpus > 0 ? info->max_vcpus : 1;
    states = calloc((size_t)vcpus, sizeof *states);
    if (!path || !info->system || !states || (listener = listen_at(path)) < 0) {
        fprintf(stderr, "vmdebug: the trace plugin cannot listen at %s: %s\n", path ? path : "(no socket)", strerror(errno));
        return 1;
    }
    if (features() & SAMPLES)
        executed.board = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    register_callbacks(false);
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);   /* QEMU's own threads handle its signals */
    int failed = pthread_create(&thread, NULL, control, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}
