/*
 * What the plugin uses of QEMU.
 *
 * API is the version of QEMU's plugin API (docs/devel/tcg-plugins.rst): 1, 4 or 7. No package has the header,
 * so this file declares what the plugin uses. The functions declared as weak are missing in some QEMUs.
 */
#ifndef VMDEBUG_QEMU_H
#define VMDEBUG_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define WEAK __attribute__((weak))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;
struct array { char *data; unsigned len; };         /* GArray and GByteArray of GLib */
struct descriptor { struct qemu_plugin_register *handle; const char *name; };
struct qemu_info { const char *target; struct { int min, cur; } version; bool system; int vcpus, max_vcpus; };
enum { NO_REGS, READ_REGS };

typedef void (*exec_callback)(unsigned vcpu, void *data);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, exec_callback, int flags, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, exec_callback, int flags, void *);
/* A number for each vCPU that translated code adds to and compares, without a call. */
struct qemu_plugin_scoreboard;
struct counter { struct qemu_plugin_scoreboard *board; size_t offset; };    /* qemu_plugin_u64 */
enum { INLINE_ADD };
enum { IF_GREATER_OR_EQUAL = 7 };
WEAK struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
WEAK void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned vcpu);
WEAK void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int op, struct counter, uint64_t);
WEAK void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, exec_callback, int flags, int condition,
                                                    struct counter, uint64_t, void *);
WEAK struct array *qemu_plugin_get_registers(void);
/* Some versions return the size, others a truth value: look at the array instead. */
WEAK void qemu_plugin_read_register(struct qemu_plugin_register *, struct array *);
WEAK bool qemu_plugin_read_memory_vaddr(uint64_t, struct array *, size_t);
WEAK struct array *g_byte_array_new(void);
WEAK unsigned g_array_get_element_size(struct array *);

#if API >= 7
typedef void (*vcpu_callback)(unsigned vcpu, void *data);
typedef void (*plugin_callback)(void *data);
typedef void (*translation_callback)(struct qemu_plugin_tb *, void *data);
#define ON_VCPU(name) static void name(unsigned vcpu, void *unused_)
#define ON_RESET(name) static void name(void *unused_)
#define ON_TRANSLATION(name) static void name(struct qemu_plugin_tb *tb, void *unused_)
#define MORE , void *
#define NULL_ , NULL
#else
typedef void (*vcpu_callback)(plugin_id, unsigned vcpu);
typedef void (*plugin_callback)(plugin_id);
typedef void (*translation_callback)(plugin_id, struct qemu_plugin_tb *);
#define ON_VCPU(name) static void name(plugin_id unused_, unsigned vcpu)
#define ON_RESET(name) static void name(plugin_id unused_)
#define ON_TRANSLATION(name) static void name(plugin_id unused_, struct qemu_plugin_tb *tb)
#define MORE
#define NULL_
#endif
void qemu_plugin_reset(plugin_id, plugin_callback MORE);
void qemu_plugin_register_vcpu_init_cb(plugin_id, vcpu_callback MORE);
void qemu_plugin_register_vcpu_idle_cb(plugin_id, vcpu_callback MORE);
void qemu_plugin_register_vcpu_resume_cb(plugin_id, vcpu_callback MORE);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translation_callback MORE);

#if API >= 3
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
static inline size_t code_of(struct qemu_plugin_insn *insn, uint8_t *into, size_t room)
{
    return qemu_plugin_insn_data(insn, into, room);
}
#else
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
static inline size_t code_of(struct qemu_plugin_insn *insn, uint8_t *into, size_t room)
{
    size_t size = qemu_plugin_insn_size(insn);
    size = size < room ? size : room;
    memcpy(into, qemu_plugin_insn_data(insn), size);
    return size;
}
#endif

#endif
