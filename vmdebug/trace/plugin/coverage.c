/*
 * Records which code of a guest was executed, and which ways its conditional jumps went.
 *
 * The unit is the block that QEMU translates: instructions without a jump between them, which end with a jump
 * or at the end of a page. Each has an entry in the memory file that a client has passed, and a byte in each of
 * three tables of that file: whether the block was executed, whether the conditional jump at its end was taken,
 * and whether it was not. A client may clear the bytes at any time. `coverage_wire.py` has the layout.
 *
 * A jump's way is known from the block that the same vCPU executes next, of those that are recorded: interrupts
 * between the two are seldom among them.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coverage.h"
#include "qemu.h"

/* The client's side; coverage_wire.py has the same layouts. */

#define MAGIC 0x31434d56u /* "VMC1" */
#define MOST_BLOCKS (1u << 24)
#define MOST_PARTS 65536u
enum { KEEP = 1 };                          /* flags: go on when the client has gone */

struct request {                            /* at the start of the file */
    uint32_t magic, flags, ranges, jumps, capacity, unused;
    uint64_t ranges_at, jumps_at, blocks_at, executed_at, taken_at, passed_at;
    /* written by the plugin */
    uint64_t started;
    uint32_t blocks, lost;
};
struct range { uint64_t low, high; };
/* A conditional jump: its bytes under a mask; its operand of `size` bytes is the distance. */
struct jump_pattern { uint8_t length, bytes[4], mask[4], at, size, unused[5]; };
struct block {
    uint64_t start, target;                 /* target of the conditional jump at the end; 0 if there is none */
    uint32_t bytes, jump;                   /* size; offset of the last instruction */
};

struct last { uint32_t block; char pad[60]; };

struct map {
    int fd, socket;                         /* socket of the client while it waits; -1 if it has gone */
    bool keep, installed, ended;
    size_t size;
    struct request *shared;
    uint32_t capacity, ranges, jumps, used;
    struct range *range;
    struct jump_pattern *jump;
    struct block *blocks;
    uint8_t *executed, *taken, *passed;
    uint32_t *index;                        /* hash table of the blocks; 0: free */
    struct last *last;
    struct map *older;                      /* not used any more, but by translated code */
};

static struct map *newest, *active;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* of translation, which several vCPUs do at once */

static void put_message(int socket, char what, int fd)
{
    char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {&what, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = room;
        message.msg_controllen = sizeof room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void free_map(struct map *m)
{
    if (m->shared)
        munmap(m->shared, m->size);
    if (m->fd >= 0)
        close(m->fd);
    free(m->range);
    free(m->jump);
    free(m->index);
    free(m->last);
    free(m);
}

/* Return the address of a part of the client's file; NULL if it does not fit. */
static void *part(struct map *m, uint64_t at, uint64_t count, size_t size)
{
    bool fits = at <= m->size && count * size <= m->size - at && at % 8 == 0;
    return fits ? (char *)m->shared + at : NULL;
}

static void *copied(struct map *m, uint64_t at, uint32_t count, size_t size)
{
    void *from = count <= MOST_PARTS ? part(m, at, count, size) : NULL;
    void *copy = from ? malloc(count * size + 1) : NULL;
    return copy ? memcpy(copy, from, count * size) : NULL;
}

static const char *prepare(struct map *m, int vcpus)
{
    struct request r = *m->shared;
    if (r.magic != MAGIC || !r.capacity || r.capacity > MOST_BLOCKS)
        return "the request is not valid";
    m->keep = r.flags & KEEP;
    m->capacity = r.capacity;
    m->ranges = r.ranges;
    m->jumps = r.jumps;
    m->range = copied(m, r.ranges_at, r.ranges, sizeof *m->range);
    m->jump = copied(m, r.jumps_at, r.jumps, sizeof *m->jump);
    m->blocks = part(m, r.blocks_at, r.capacity, sizeof *m->blocks);
    m->executed = part(m, r.executed_at, r.capacity, 1);
    m->taken = part(m, r.taken_at, r.capacity, 1);
    m->passed = part(m, r.passed_at, r.capacity, 1);
    m->index = calloc(2 * (size_t)r.capacity, sizeof *m->index);
    m->last = calloc((size_t)vcpus, sizeof *m->last);
    if (!m->range || !m->jump || !m->blocks || !m->executed || !m->taken || !m->passed || !m->index || !m->last)
        return "the request does not fit";
    for (uint32_t i = 0; i < m->jumps; i++)
        if (m->jump[i].length > 4 || m->jump[i].size > 8 || !m->jump[i].size)
            return "a jump is not valid";
    m->used = 1;                            /* block 0 is none */
    return NULL;
}

const char *coverage_begin(int socket, int fd, int vcpus)
{
    struct stat found;
    if (newest && !newest->ended)
        return "coverage is being recorded already";
    struct map *m = calloc(1, sizeof *m);
    const char *error = "there is no memory";
    if (m) {
        *m = (struct map){.fd = fd, .socket = socket, .older = newest};
        error = "the file cannot be mapped";
        if (fstat(fd, &found) == 0 && (size_t)found.st_size >= sizeof(struct request)) {
            m->size = (size_t)found.st_size;
            m->shared = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            m->shared = m->shared == MAP_FAILED ? NULL : m->shared;
            error = m->shared ? prepare(m, vcpus) : error;
        }
    }
    if (!error)
        newest = m;
    else if (m)
        free_map(m);
    else
        close(fd);
    return error;
}

void coverage_pass(int socket)
{
    bool found = newest && !newest->ended;
    put_message(socket, found ? 'm' : '!', found ? newest->fd : -1);
}

void coverage_end(void)
{
    if (newest)
        newest->ended = true;
}

void coverage_client_gone(int socket)
{
    struct map *m = newest;
    if (m && m->socket == socket) {
        m->socket = -1;
        m->ended |= !m->keep;
    }
}

bool coverage_reset(void)
{
    while (newest && newest->ended) {
        struct map *m = newest;
        newest = m->older;
        free_map(m);
    }
    for (struct map *m = newest; m && m->older;) {
        struct map *old = m->older;
        m->older = old->older;
        free_map(old);
    }
    active = newest;
    if (active && !active->installed) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        active->installed = true;
        active->shared->started = t.tv_sec * 1000000000ull + t.tv_nsec;
        if (active->socket >= 0)
            put_message(active->socket, 'r', -1);
    }
    return active;
}

static bool wanted(const struct map *m, uint64_t start, uint64_t end)
{
    uint32_t low = 0, high = m->ranges;
    while (low < high) {                    /* the first range that ends after the start */
        uint32_t middle = low + (high - low) / 2;
        if (m->range[middle].high <= start)
            low = middle + 1;
        else
            high = middle;
    }
    return low < m->ranges && m->range[low].low < end;
}

/* Return the target of an instruction if it is a conditional jump; 0 if it is not. */
static uint64_t target_of(const struct map *m, struct qemu_plugin_insn *insn, uint64_t end)
{
    uint8_t code[16];
    size_t size = code_of(insn, code, sizeof code);
    for (uint32_t i = 0; i < m->jumps; i++) {
        const struct jump_pattern *j = &m->jump[i];
        bool fits = size == (size_t)j->at + j->size;
        for (unsigned k = 0; fits && k < j->length; k++)
            fits = (code[k] & j->mask[k]) == j->bytes[k];
        if (fits) {
            int64_t distance = 0;
            memcpy(&distance, code + j->at, j->size);
            unsigned unused = 64 - 8 * j->size;
            return end + (uint64_t)((int64_t)((uint64_t)distance << unused) >> unused);
        }
    }
    return 0;
}

/* Return the number of a block; 0 if there is no room. It stays the same when it is translated again. */
static uint32_t number_of(struct map *m, const struct block *b)
{
    uint32_t slots = 2 * m->capacity, at = (uint32_t)(((b->start ^ b->bytes) * 0x9e3779b97f4a7c15ull) >> 32) % slots;
    for (; m->index[at]; at = at + 1 < slots ? at + 1 : 0) {
        const struct block *known = &m->blocks[m->index[at]];
        if (known->start == b->start && known->bytes == b->bytes && known->target == b->target)
            return m->index[at];
    }
    if (m->used == m->capacity) {
        m->shared->lost++;
        return 0;
    }
    uint32_t number = m->used++;
    m->blocks[number] = *b;
    m->index[at] = number;
    __atomic_store_n(&m->shared->blocks, m->used, __ATOMIC_RELEASE);
    return number;
}

static void on_block(unsigned vcpu, void *data)
{
    struct map *m = active;
    uint32_t now = (uint32_t)(uintptr_t)data, before = m->last[vcpu].block;
    m->last[vcpu].block = now;
    if (!m->executed[now])
        m->executed[now] = 1;
    const struct block *b = &m->blocks[before];
    if (!b->target)
        return;
    uint64_t start = m->blocks[now].start;
    if (start == b->target && !m->taken[before])
        m->taken[before] = 1;
    else if (start == b->start + b->bytes && !m->passed[before])
        m->passed[before] = 1;
}

void coverage_translate(struct qemu_plugin_tb *tb)
{
    struct map *m = active;
    size_t count = qemu_plugin_tb_n_insns(tb);
    if (!m || !count)
        return;
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0), *last = qemu_plugin_tb_get_insn(tb, count - 1);
    struct block b = {.start = qemu_plugin_insn_vaddr(first)};
    uint64_t jump = qemu_plugin_insn_vaddr(last), end = jump + qemu_plugin_insn_size(last);
    if (!wanted(m, b.start, end))
        return;
    b.bytes = (uint32_t)(end - b.start);
    b.jump = (uint32_t)(jump - b.start);
    b.target = target_of(m, last, end);
    pthread_mutex_lock(&lock);
    uint32_t number = number_of(m, &b);
    pthread_mutex_unlock(&lock);
    if (number)
        qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGS, (void *)(uintptr_t)number);
}
