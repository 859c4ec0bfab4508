/* Records which code of a guest was executed. `plugin.c` calls these functions with its lock held. */
#ifndef VMDEBUG_COVERAGE_H
#define VMDEBUG_COVERAGE_H

#include <stdbool.h>

struct qemu_plugin_tb;

/* Record code from the next reset on, as the file of a client says; return the reason if it is not possible. */
const char *coverage_begin(int socket, int fd, int vcpus);
/* Pass the file to a client: 'm' with the file, or '!' if nothing is recorded. */
void coverage_pass(int socket);
/* Stop recording at the next reset. */
void coverage_end(void);
/* A client has gone: what it alone wanted ends at the next reset. */
void coverage_client_gone(int socket);
/* No vCPU runs and no translated code is left. Return whether `coverage_translate` must be called. */
bool coverage_reset(void);

void coverage_translate(struct qemu_plugin_tb *tb);

#endif
