/*
 * Makes system calls fail at random in the world of a soak test; loaded by LD_PRELOAD.
 *
 * SOAK_ERRNO  an error number: one in SOAK_ONE_IN calls fails with it. These calls are opens, writes and renames
 *             of files below SOAK_ROOT, and the creation of sockets.
 * SOAK_CLOCK  if set, CLOCK_REALTIME jumps by up to a day in either direction at each call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned int number(const char *name)
{
	const char *text = getenv(name);

	return text ? (unsigned int)atoi(text) : 0;
}

static unsigned int dice(void)
{
	static __thread unsigned int state;

	if (!state)
		state = number("SOAK_SEED") ^ ((unsigned int)getpid() << 8) ^ 1;
	return (unsigned int)rand_r(&state);
}

static int fails(void)
{
	unsigned int one_in = number("SOAK_ONE_IN");

	if (!one_in || dice() % one_in)
		return 0;
	errno = (int)number("SOAK_ERRNO");
	return 1;
}

static int in_world(const char *path)
{
	const char *root = getenv("SOAK_ROOT");

	return root && path && !strncmp(path, root, strlen(root));
}

static int is_in_world(int fd)
{
	char link[64], path[512];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	if (length <= 0)
		return 0;
	path[length] = 0;
	return in_world(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Callers pass the mode only with O_CREAT; reading it without is harmless on the machines that run this. */
#define MODE(flags) ({                                                \
	va_list rest;                                                 \
	mode_t mode;                                                  \
	va_start(rest, flags);                                        \
	mode = va_arg(rest, mode_t);                                  \
	va_end(rest);                                                 \
	mode; })

#define OPEN(name)                                                    \
	int name(const char *path, int flags, ...)                    \
	{                                                             \
		if (in_world(path) && fails())                        \
			return -1;                                    \
		return REAL(name)(path, flags, MODE(flags));          \
	}

#define OPENAT(name)                                                  \
	int name(int at, const char *path, int flags, ...)            \
	{                                                             \
		if (in_world(path) && fails())                        \
			return -1;                                    \
		return REAL(name)(at, path, flags, MODE(flags));      \
	}

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size)
{
	if (fd > 2 && is_in_world(fd) && fails())
		return -1;
	return REAL(write)(fd, data, size);
}

int rename(const char *from, const char *to)
{
	if (in_world(to) && fails())
		return -1;
	return REAL(rename)(from, to);
}

int socket(int domain, int type, int protocol)
{
	if (fails())
		return -1;
	return REAL(socket)(domain, type, protocol);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = REAL(clock_gettime)(clock, now);

	if (!result && clock == CLOCK_REALTIME && getenv("SOAK_CLOCK"))
		now->tv_sec += (time_t)(dice() % 172800) - 86400;
	return result;
}
