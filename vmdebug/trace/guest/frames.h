/*
 * What the programs in the guest whose output is frames share: the reader of traces, and the sampler of profiles.
 *
 * Standard input has commands, one a line; each is answered, in order.
 *
 * Standard output has frames: SIZE (4 bytes), KIND (2), CPU (2), all least significant first, and SIZE bytes. Of
 * every program, R is an answer, and E one to a command that has failed: the number of the error, a space, and text.
 */
#ifndef VMDEBUG_FRAMES_H
#define VMDEBUG_FRAMES_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FRAME_HEAD = 8,
	PIPE = 1 << 20,		/* bytes of the pipe to the agent */
};

struct buffer {
	char *data;
	size_t size, room;
};

static void append(struct buffer *buffer, const void *data, size_t size)
{
	if (buffer->size + size > buffer->room) {
		buffer->room = 2 * (buffer->size + size);
		buffer->data = realloc(buffer->data, buffer->room);
		if (!buffer->data)
			_exit(1);
	}
	if (size)
		memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
}

/* Write all; return whether that worked. */
static int write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t wrote = write(fd, data, size);

		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return 0;
		data += wrote;
		size -= wrote;
	}
	return 1;
}

static void frame_head(char head[FRAME_HEAD], char kind, unsigned cpu, uint32_t size)
{
	unsigned char bytes[FRAME_HEAD] = { size, size >> 8, size >> 16, size >> 24, kind, 0, cpu, cpu >> 8 };

	memcpy(head, bytes, FRAME_HEAD);
}

/* Begin: remove the program's own file, which has done its work, and prepare the pipe to the agent. */
static void begin_program(const char *file)
{
	unlink(file);
	signal(SIGPIPE, SIG_IGN);
	fcntl(1, F_SETPIPE_SZ, PIPE);
}

/* The text of the first answer: our pid, and that of our parent, the agent. */
static const char *own_pids(void)
{
	static char pids[32];

	snprintf(pids, sizeof(pids), "%d %d", getpid(), getppid());
	return pids;
}

/* Run the commands that have arrived; return 0 if there will be no more. */
static int read_commands(void (*run)(char *line))
{
	static struct buffer lines;
	char bytes[16384], *at, *newline;
	ssize_t got = read(0, bytes, sizeof(bytes));

	if (got < 0 && errno == EINTR)
		return 1;
	if (got <= 0)
		return 0;
	append(&lines, bytes, got);
	for (at = lines.data; (newline = memchr(at, '\n', lines.data + lines.size - at)); at = newline + 1) {
		*newline = 0;
		run(at);
	}
	lines.size -= at - lines.data;
	memmove(lines.data, at, lines.size);
	return 1;
}

/* Divide a command from its argument, which is returned; "" if it has none. */
static char *argument_of(char *line)
{
	char *argument = strchr(line, ' ');

	if (!argument)
		return line + strlen(line);
	*argument = 0;
	return argument + 1;
}

#endif
