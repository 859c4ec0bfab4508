/*
 * vmdebug's agent: runs commands in the guest for the host, one for each port at a time.
 *
 *	vmdebug-agent [TTY]
 *
 * A port is a virtio-serial port named org.vmdebug.shell.*, as virtio_console.c of the kernel's drivers/char makes
 * it. Where there is none, it is TTY, a serial line that nobody else uses.
 *
 * Both sides send frames:
 *
 *	TYPE (1 byte) SEQUENCE (4 bytes, least significant first) PAYLOAD '~'
 *
 * A '~' inside a frame is sent as "}^" and a '}' as "}]", so whoever comes into the middle of a stream finds the
 * next frame. SEQUENCE counts the frames of a session and shows that the guest has gone back to a snapshot.
 *
 *	from the host					from the guest
 *	H VERSION NONCE(16)	begin a session		W VERSION NONCE(16)	the session has begun
 *	X STDIN LINE		run `sh -c LINE`	O DATA, R DATA		standard output, standard error
 *	I DATA			standard input		A COUNT(4)		so much input has been used
 *	E			end of the input	C			the command reads no more input
 *	K SIGNAL		signal its group	S STATUS		exit status, 128 + N for signal N
 *	P			are you there?		P			yes
 *	Q			end it			F TEXT			it cannot be started, and why
 *							N			no such session
 *
 * A session ends with the host's connection, with the next H, or with Q; what is left of its command then gets
 * SIGTERM, and SIGKILL half a second later. What a command that has ended leaves in the background goes on.
 * The nonce is random, and goes to /dev/urandom: two copies of a guest draw different numbers.
 *
 * With the kernel parameter vmdebug.steps the agent has one port, a mailbox: memory at a fixed address, which the host
 * reads and writes through QEMU's gdbstub while the guest is stopped. So what the host sends arrives at the same
 * instruction each time. A watchpoint of the host on the mailbox's first word stops the guest: the agent writes there
 * when it is ready, when it needs the host, and when a command has ended. What the host gives at a stop is a piece:
 *
 *	STOP(4) SIZE(4) DATA
 *
 * STOP is the number of that stop, and the next piece begins where this one ends. So a host that knows all pieces of a
 * run can write them at its begin, and the agent takes each at the same instruction as before: QEMU does not log what
 * a gdbstub writes, so a guest that is recorded gets its commands in this way. Such a host may send before X:
 *
 *	J SEED(8) GAP(4) FIRST(4) COUNT(4)	disturb the scheduler while the command runs; see `disturb`
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define SYSFS_PORTS "/sys/class/virtio-ports"
#define PORT_PREFIX "org.vmdebug.shell."

enum {
	VERSION = 1,
	NONCE = 16,
	HEADER = 5,
	PIECE_HEADER = 8,
	MAX_PORTS = 64,
	CHUNK = 32768,		/* bytes per read; virtio_console writes at most 32 KiB at once */
	OUTPUT_LIMIT = 65536,	/* bytes queued for the host, above which we read no more output */
	FRAME_LIMIT = 4 << 20,	/* bytes; a longer frame is dropped */
	ARGUMENT_LIMIT = 100000, /* longest line passed as an argument; MAX_ARG_STRLEN is 131072 */
	KILL_DELAY_MS = 500,	/* between SIGTERM and SIGKILL */
	HANGUP_DELAY_MS = 200,	/* between a hangup and the end of the session */
	HEARD_MS = 2000,	/* so long after the last frame a hangup may still be that of an earlier host */
	TTY_DELAY_MS = 1000,	/* how long to wait for a virtio port before TTY is opened */
	TTY_TIMEOUT_MS = 30000,	/* without a frame, after which a session on a TTY ends */
	DISTURBANCE = 20,	/* bytes of a J frame */
	MAILBOX_IN = 1 << 20,	/* bytes of pieces, before the next one is again at the begin */
	MAILBOX_PIECE = 1 << 14, /* bytes of the longest piece, with its header */
	MAILBOX_OUT = 1 << 15,	/* bytes that the agent writes at once */
	LARGEST_FAMILY = 64,	/* tasks of a command of which one is preferred */
	TERMINATING = 64,
};

enum { FLAG = '~', ESCAPE = '}' };

/* Where the mailbox is, below 2^46, where no kernel places anything by itself. */
#define MAILBOX_ADDRESS 0x200000000000UL

enum kind { PORT, INPUT, OUTPUT, ERRORS, ABANDONED };

struct queue {
	unsigned char *data;
	size_t start, end, size;
};

/* Our end of one of a command's pipes. `ready`: no EAGAIN since the last event. */
struct pipe_end {
	int fd;
	int ready;
	int unread; /* bytes that were in the pipe when the command ended */
};

struct port {
	int fd;
	int tty, readable, writable;
	int64_t hangup_at; /* ms: when to check whether the host is still disconnected; 0: it is connected */
	struct queue frame, out;
	int escaped, overlong;

	int open; /* a session */
	unsigned char nonce[NONCE];
	uint32_t sent, received; /* frames of the session */
	int64_t last_received; /* ms */

	pid_t pid; /* 0: no command */
	int exited, status;
	struct pipe_end in, std[2]; /* stdin; stdout and stderr */
	struct queue input;
	int end_of_input;

	int disturbed;
	unsigned char disturbance[DISTURBANCE];
	pid_t disturber;
};

struct mailbox {
	uint64_t stop; /* the number of the last stop; the host stops the guest when this is written */
	uint32_t out, in; /* bytes of output at this stop; where the next piece of input begins */
	unsigned char output[MAILBOX_OUT], input[MAILBOX_IN];
};

static struct port ports[MAX_PORTS];
static int count;
static struct {
	pid_t group;
	int64_t at;
} terminating[TERMINATING];
static int epoll, urandom;
static struct mailbox *mailbox; /* NULL: virtio ports or a TTY */
static int stop_wanted, stopped;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

static size_t queued(const struct queue *queue)
{
	return queue->end - queue->start;
}

static void append(struct queue *queue, const void *from, size_t size)
{
	if (queue->end + size > queue->size) {
		if (queue->start)
			memmove(queue->data, queue->data + queue->start, queued(queue));
		queue->end -= queue->start;
		queue->start = 0;
	}
	if (queue->end + size > queue->size) {
		queue->size = 2 * (queue->end + size);
		queue->data = realloc(queue->data, queue->size);
		if (!queue->data)
			die("vmdebug-agent: memory");
	}
	memcpy(queue->data + queue->end, from, size);
	queue->end += size;
}

static void consume(struct queue *queue, size_t size)
{
	queue->start += size;
	if (queue->start == queue->end)
		queue->start = queue->end = 0;
}

static void clear(struct queue *queue)
{
	/* Free what a long command or much output needed. */
	if (queue->size > 4 * OUTPUT_LIMIT) {
		free(queue->data);
		queue->data = NULL;
		queue->size = 0;
	}
	queue->start = queue->end = 0;
}

static int watch(int fd, enum kind kind, int number)
{
	/* Edge-triggered, because a port without a host reports EPOLLHUP all the time. */
	struct epoll_event event = { EPOLLIN | EPOLLOUT | EPOLLET, { .u64 = (uint64_t)kind << 32 | (uint32_t)number } };

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void close_end(struct pipe_end *end)
{
	if (end->fd < 0)
		return;
	/* close(2) does not remove it while a child between fork and exec has the file open, too. */
	epoll_ctl(epoll, EPOLL_CTL_DEL, end->fd, NULL);
	close(end->fd);
	end->fd = -1;
}

static void append_escaped(struct queue *out, const unsigned char *at, size_t size)
{
	const unsigned char *end = at + size, *run;

	while (at < end) {
		for (run = at; at < end && *at != FLAG && *at != ESCAPE; at++)
			;
		append(out, run, at - run);
		if (at < end) {
			append(out, *at == FLAG ? "}^" : "}]", 2);
			at++;
		}
	}
}

static void send_frame(struct port *port, char type, const void *data, size_t size)
{
	uint32_t sequence = port->sent++;
	unsigned char head[HEADER] = { type, sequence, sequence >> 8, sequence >> 16, sequence >> 24 };

	append_escaped(&port->out, head, HEADER);
	append_escaped(&port->out, data, size);
	append(&port->out, "~", 1);
}

static void terminate_group(pid_t group)
{
	kill(-group, SIGTERM);
	kill(-group, SIGCONT);
	for (int i = 0; i < TERMINATING; i++) {
		if (!terminating[i].group) {
			terminating[i].group = group;
			terminating[i].at = now() + KILL_DELAY_MS;
			return;
		}
	}
	kill(-group, SIGKILL);
}

/* Stop the guest, until the host has read the output, and given a piece if it has one. */
static void stop_guest(void)
{
	__sync_synchronize();
	++*(volatile uint64_t *)&mailbox->stop;
	__sync_synchronize();
	mailbox->out = 0;
	stopped = 1;
}

static uint64_t little_endian(const unsigned char *at, int size)
{
	uint64_t number = 0;

	while (size--)
		number = number << 8 | at[size];
	return number;
}

/* splitmix64 */
static uint64_t random_number(uint64_t *state)
{
	uint64_t number = *state += 0x9e3779b97f4a7c15;

	number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9;
	number = (number ^ number >> 27) * 0x94d049bb133111eb;
	return number ^ number >> 31;
}

/* Find the tasks of a session, and return how many there are. */
static int find_family(pid_t session, pid_t family[LARGEST_FAMILY])
{
	DIR *processes = opendir("/proc"), *tasks;
	struct dirent *entry, *task;
	char path[300];
	int found = 0;

	while (processes && found < LARGEST_FAMILY && (entry = readdir(processes))) {
		pid_t pid = atoi(entry->d_name);

		if (pid <= 0 || getsid(pid) != session)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task", pid);
		tasks = opendir(path);
		while (tasks && found < LARGEST_FAMILY && (task = readdir(tasks)))
			if (atoi(task->d_name) > 0)
				family[found++] = atoi(task->d_name);
		if (tasks)
			closedir(tasks);
	}
	if (processes)
		closedir(processes);
	return found;
}

/*
 * Disturb the scheduler while a command runs, in the same way for the same seed: at random times, prefer one of the
 * command's tasks to all others. GAP is the mean time between two disturbances, in microseconds of the guest. Only those
 * from FIRST on happen, COUNT of them; the others only take their time.
 */
static void disturb(pid_t session, const unsigned char data[DISTURBANCE])
{
	uint64_t state = little_endian(data, 8), gap = little_endian(data + 8, 4);
	uint64_t first = little_endian(data + 12, 4), end = first + little_endian(data + 16, 4);
	struct sched_param highest = { .sched_priority = 90 }, high = { .sched_priority = 10 }, normal = { 0 };
	pid_t family[LARGEST_FAMILY], preferred = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	sched_setscheduler(0, SCHED_FIFO, &highest);
	for (uint64_t event = 0; event < end && !kill(-session, 0); event++) {
		uint64_t pause = random_number(&state) % (2 * gap + 1), choice = random_number(&state);
		struct timespec time = { pause / 1000000, pause % 1000000 * 1000 };
		int size;

		clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
		if (preferred)
			sched_setscheduler(preferred, SCHED_OTHER, &normal);
		preferred = 0;
		if (event < first)
			continue;
		size = find_family(session, family);
		if (!size)
			continue;
		preferred = family[choice % size];
		if (sched_setscheduler(preferred, SCHED_FIFO, &high))
			preferred = 0;
	}
	_exit(0);
}

static void start_disturber(struct port *port)
{
	pid_t pid;

	if (!port->disturbed)
		return;
	port->disturbed = 0;
	pid = fork();
	if (pid == 0)
		disturb(port->pid, port->disturbance);
	port->disturber = pid > 0 ? pid : 0;
}

static void end_disturber(struct port *port)
{
	if (port->disturber)
		kill(port->disturber, SIGKILL); /* `reap` takes its status */
	port->disturber = 0;
}

/* End the session, and its command if that still runs. */
static void end_session(struct port *port)
{
	end_disturber(port);
	port->disturbed = 0;
	if (port->pid && !port->exited)
		terminate_group(port->pid);
	port->pid = 0;
	port->open = port->exited = port->end_of_input = 0;
	close_end(&port->in);
	close_end(&port->std[0]);
	close_end(&port->std[1]);
	clear(&port->input);
	clear(&port->out);
}

static void begin_session(struct port *port, const unsigned char *data, size_t size)
{
	unsigned char words[1 + NONCE] = { VERSION };

	end_session(port);
	if (size < 1 + NONCE)
		return;
	memcpy(port->nonce, data + 1, NONCE);
	memcpy(words + 1, port->nonce, NONCE);
	if (urandom >= 0 && write(urandom, port->nonce, NONCE) < 0)
		urandom = -1; /* not writable: no seed */
	port->open = 1;
	port->sent = 0;
	port->received = 1;
	append(&port->out, "~", 1); /* ends a frame that was sent in part */
	send_frame(port, 'W', words, sizeof(words));
}

/* Return a memfd with a line that is too long for an argument, or -1. */
static int line_file(const char *line, size_t size)
{
	int fd = memfd_create("command", MFD_CLOEXEC);

	while (fd >= 0 && size) {
		ssize_t wrote = write(fd, line, size);

		if (wrote <= 0) {
			close(fd);
			return -1;
		}
		line += wrote;
		size -= wrote;
	}
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET);
	return fd;
}

/* Start `sh -c LINE` on three descriptors, in a session of its own, so that kill(-pid) reaches all its processes. */
static int spawn(pid_t *pid, char *line, size_t size, const int fds[3])
{
	char *argv[] = { "sh", "-c", line, NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t every, none;
	int file = -1, error;

	sigfillset(&every);
	sigemptyset(&none);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigdefault(&attributes, &every);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawn_file_actions_init(&actions);
	for (int i = 0; i < 3; i++)
		posix_spawn_file_actions_adddup2(&actions, fds[i], i);
	if (size > ARGUMENT_LIMIT) {
		file = line_file(line, size);
		if (file < 0)
			return errno;
		posix_spawn_file_actions_adddup2(&actions, file, 3);
		argv[2] = ". /proc/self/fd/3";
	}
	error = posix_spawn(pid, "/bin/sh", &actions, &attributes, argv, environ);
	if (file >= 0)
		close(file);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return error;
}

static int open_end(struct pipe_end *end, int fd, enum kind kind, int number)
{
	end->fd = fd;
	end->ready = 1;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return watch(fd, kind, number);
}

static void start_command(struct port *port, unsigned char *data, size_t size)
{
	int number = port - ports, error = 0, pipes[3][2], theirs[3];

	if (port->pid || size < 2)
		return;
	append(&port->frame, "", 1); /* NUL ends the line; this may move the frame */
	data = port->frame.data + port->frame.start + HEADER;
	for (int i = 0; i < 3; i++)
		pipes[i][0] = pipes[i][1] = -1;
	for (int i = 0; i < 3 && !error; i++) {
		if (i == 0 && !data[0])
			pipes[0][0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		else if (pipe2(pipes[i], O_CLOEXEC))
			error = errno;
		theirs[i] = pipes[i][i != 0];
	}
	if (!error)
		error = spawn(&port->pid, (char *)data + 1, size - 1, theirs);
	for (int i = 0; i < 3; i++)
		if (pipes[i][i != 0] >= 0)
			close(pipes[i][i != 0]);
	if (error) {
		port->pid = 0;
		for (int i = 0; i < 3; i++)
			if (pipes[i][i == 0] >= 0)
				close(pipes[i][i == 0]);
		send_frame(port, 'F', strerror(error), strlen(strerror(error)));
		stop_wanted = 1;
		return;
	}
	start_disturber(port);
	port->exited = port->end_of_input = 0;
	if (pipes[0][1] >= 0)
		open_end(&port->in, pipes[0][1], INPUT, number);
	open_end(&port->std[0], pipes[1][0], OUTPUT, number);
	open_end(&port->std[1], pipes[2][0], ERRORS, number);
}

static void handle_frame(struct port *port)
{
	unsigned char *frame = port->frame.data + port->frame.start, *data = frame + HEADER;
	size_t size = queued(&port->frame);
	uint32_t sequence;

	if (size < HEADER)
		return;
	size -= HEADER;
	sequence = frame[1] | frame[2] << 8 | frame[3] << 16 | (uint32_t)frame[4] << 24;
	port->last_received = now();
	if (frame[0] == 'H') {
		begin_session(port, data, size);
		return;
	}
	if (!port->open || sequence != port->received) {
		end_session(port);
		send_frame(port, 'N', "", 0);
		stop_wanted = 1;
		return;
	}
	port->received++;
	switch (frame[0]) {
	case 'X':
		start_command(port, data, size);
		break;
	case 'J':
		port->disturbed = size == DISTURBANCE;
		if (port->disturbed)
			memcpy(port->disturbance, data, size);
		break;
	case 'I':
		if (port->in.fd >= 0)
			append(&port->input, data, size);
		break;
	case 'E':
		port->end_of_input = 1;
		break;
	case 'K':
		if (size && port->pid && !port->exited)
			kill(-port->pid, data[0]);
		break;
	case 'P':
		send_frame(port, 'P', "", 0);
		break;
	case 'Q':
		end_session(port);
		break;
	}
}

static void decode(struct port *port, const unsigned char *at, size_t size)
{
	const unsigned char *end = at + size, *run;

	while (at < end) {
		for (run = at; at < end && *at != FLAG && *at != ESCAPE && !port->escaped; at++)
			;
		if (queued(&port->frame) + (at - run) <= FRAME_LIMIT)
			append(&port->frame, run, at - run);
		else
			port->overlong = 1;
		if (at == end)
			break;
		if (*at == FLAG) {
			if (!port->overlong)
				handle_frame(port);
			clear(&port->frame);
			port->overlong = port->escaped = 0;
		} else if (port->escaped) {
			append(&port->frame, *at == '^' ? "~" : "}", 1);
			port->escaped = 0;
		} else {
			port->escaped = 1;
		}
		at++;
	}
}

static int read_mailbox(struct port *port)
{
	const unsigned char *piece = mailbox->input + mailbox->in;
	size_t size;

	/* Only after a stop: a piece that was written earlier must not arrive earlier. */
	if (!stopped)
		return 0;
	stopped = 0;
	size = little_endian(piece + 4, 4);
	if (little_endian(piece, 4) != (uint32_t)mailbox->stop || size > MAILBOX_PIECE - PIECE_HEADER)
		return 0;
	decode(port, piece + PIECE_HEADER, size);
	mailbox->in += PIECE_HEADER + size;
	if (mailbox->in > MAILBOX_IN - MAILBOX_PIECE)
		mailbox->in = 0;
	return 1;
}

static int write_mailbox(struct port *port)
{
	size_t size = queued(&port->out), room = MAILBOX_OUT - mailbox->out;

	if (!size)
		return 0;
	if (size > room)
		size = room;
	memcpy(mailbox->output + mailbox->out, port->out.data + port->out.start, size);
	mailbox->out += size;
	consume(&port->out, size);
	if (queued(&port->out))
		stop_guest(); /* it is full */
	return 1;
}

/* Read what the host sent; return whether there was something. */
static int read_port(struct port *port)
{
	static unsigned char bytes[CHUNK];
	ssize_t got;

	if (mailbox)
		return read_mailbox(port);
	if (!port->readable || queued(&port->out) >= OUTPUT_LIMIT)
		return 0;
	got = read(port->fd, bytes, sizeof(bytes));
	if (got > 0) {
		decode(port, bytes, got);
		return 1;
	}
	port->readable = 0;
	if (got == 0 && !port->hangup_at)
		port->hangup_at = now() + HANGUP_DELAY_MS; /* virtio_console: no host; tty: hung up */
	return 0;
}

static int write_stdin(struct port *port)
{
	ssize_t wrote;
	uint32_t used;

	if (port->in.fd < 0)
		return 0;
	if (!queued(&port->input)) {
		if (port->end_of_input)
			close_end(&port->in);
		else if (mailbox && port->in.ready)
			stop_wanted = 1;
		return 0;
	}
	if (!port->in.ready)
		return 0;
	wrote = write(port->in.fd, port->input.data + port->input.start, queued(&port->input));
	if (wrote < 0) {
		port->in.ready = 0;
		if (errno != EAGAIN) {
			close_end(&port->in);
			clear(&port->input);
			send_frame(port, 'C', "", 0);
		}
		return 0;
	}
	consume(&port->input, wrote);
	used = wrote;
	send_frame(port, 'A', (unsigned char[]){ used, used >> 8, used >> 16, used >> 24 }, 4);
	return 1;
}

static int read_output(struct port *port, int which)
{
	static unsigned char bytes[CHUNK];
	struct pipe_end *end = &port->std[which];
	size_t most = sizeof(bytes);
	ssize_t got;

	if (end->fd < 0 || !end->ready || queued(&port->out) >= OUTPUT_LIMIT)
		return 0;
	if (port->exited && end->unread < CHUNK)
		most = end->unread;
	got = most ? read(end->fd, bytes, most) : -1;
	if (got > 0) {
		end->unread -= got;
		send_frame(port, which ? 'R' : 'O', bytes, got);
		return 1;
	}
	end->ready = 0;
	if (got == 0)
		close_end(end);
	return 0;
}

/* Send the status once all output is sent. What background processes write later is read and discarded. */
static int send_status(struct port *port)
{
	if (!port->exited)
		return 0;
	for (int i = 0; i < 2; i++)
		if (port->std[i].fd >= 0 && port->std[i].ready)
			return 0;
	close_end(&port->in);
	clear(&port->input);
	for (int i = 0; i < 2; i++) {
		struct epoll_event event = { EPOLLIN, { .u64 = (uint64_t)ABANDONED << 32 | (uint32_t)port->std[i].fd } };

		if (port->std[i].fd >= 0)
			epoll_ctl(epoll, EPOLL_CTL_MOD, port->std[i].fd, &event);
		port->std[i].fd = -1;
	}
	port->pid = port->exited = 0;
	send_frame(port, 'S', (unsigned char[]){ port->status }, 1);
	stop_wanted = 1;
	return 1;
}

static int write_port(struct port *port)
{
	size_t size = queued(&port->out);
	ssize_t wrote;

	if (mailbox)
		return write_mailbox(port);
	if (!port->writable || !size)
		return 0;
	wrote = write(port->fd, port->out.data + port->out.start, size < CHUNK ? size : CHUNK);
	if (wrote <= 0) {
		port->writable = 0;
		return 0;
	}
	consume(&port->out, wrote);
	return 1;
}

/* Serve a port without blocking; return whether to call it again at once. */
static int serve_port(struct port *port)
{
	int more;

	more = read_port(port);
	more |= write_stdin(port);
	more |= read_output(port, 0);
	more |= read_output(port, 1);
	more |= send_status(port);
	more |= write_port(port);
	return more;
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (struct port *port = ports; port < ports + count; port++) {
			if (port->pid != pid)
				continue;
			port->exited = 1;
			end_disturber(port);
			port->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
			for (int i = 0; i < 2; i++) {
				/* Do not read up to EOF: background processes may keep the pipe open and write to it. */
				port->std[i].unread = 0;
				if (port->std[i].fd >= 0)
					ioctl(port->std[i].fd, FIONREAD, &port->std[i].unread);
				port->std[i].ready = 1;
			}
		}
	}
}

/* Kill groups that ignore SIGTERM, and end dead sessions; return the milliseconds until the next timer, or -1. */
static int run_timers(void)
{
	int64_t time = now(), next = -1;

	for (int i = 0; i < TERMINATING; i++) {
		if (!terminating[i].group)
			continue;
		if (time >= terminating[i].at || kill(-terminating[i].group, 0)) {
			kill(-terminating[i].group, SIGKILL);
			terminating[i].group = 0;
		} else if (next < 0 || terminating[i].at - time < next) {
			next = terminating[i].at - time;
		}
	}
	for (struct port *port = ports; port < ports + count; port++) {
		struct pollfd state = { .fd = port->fd };

		/*
		 * What a new host sends overtakes the message that the old one has gone, which virtio_console
		 * handles in a work item: by now it has handled the message about the new one, too. On a busy
		 * machine the work item may take longer, as at the end of a boot.
		 */
		if (port->hangup_at && time >= port->hangup_at) {
			port->hangup_at = 0;
			if (poll(&state, 1, 0) > 0 && state.revents & POLLHUP) {
				if (port->open && time < port->last_received + HEARD_MS)
					port->hangup_at = port->last_received + HEARD_MS;
				else
					end_session(port);
			}
		}
		if (port->hangup_at && (next < 0 || port->hangup_at - time < next))
			next = port->hangup_at - time;
		if (!port->tty || !port->open)
			continue;
		if (time >= port->last_received + TTY_TIMEOUT_MS)
			end_session(port);
		else if (next < 0 || port->last_received + TTY_TIMEOUT_MS - time < next)
			next = port->last_received + TTY_TIMEOUT_MS - time;
	}
	return next;
}

static void open_port(const char *path, int tty)
{
	struct port *port = &ports[count];
	struct termios settings;
	int fd;

	if (count == MAX_PORTS)
		return;
	fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return; /* EBUSY: ours already */
	if (tty) {
		if (tcgetattr(fd, &settings)) {
			close(fd);
			return;
		}
		cfmakeraw(&settings);
		settings.c_cflag |= CLOCAL | CREAD;
		tcsetattr(fd, TCSANOW, &settings);
	}
	memset(port, 0, sizeof(*port));
	port->fd = fd;
	port->tty = tty;
	port->readable = port->writable = 1;
	port->in.fd = port->std[0].fd = port->std[1].fd = -1;
	if (watch(fd, PORT, count)) {
		close(fd);
		return;
	}
	count++;
}

static int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = 0;
	return got > 0;
}

static int read_attribute(const char *directory, const char *name, const char *attribute, char *text, size_t size)
{
	char path[600];

	snprintf(path, sizeof(path), "%s/%s/%s", directory, name, attribute);
	return read_file(path, text, size);
}

/* Open new ports. The kernel sets a port's name some time after it creates the port. */
static void scan_ports(void)
{
	struct dirent *entry;
	unsigned major, minor;
	char text[128], path[300];
	DIR *directory = opendir(SYSFS_PORTS);

	while (directory && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.' || !read_attribute(SYSFS_PORTS, entry->d_name, "name", text, sizeof(text)))
			continue;
		if (strncmp(text, PORT_PREFIX, strlen(PORT_PREFIX)))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		/* Without devtmpfs there is no node. */
		if (access(path, F_OK) && read_attribute(SYSFS_PORTS, entry->d_name, "dev", text, sizeof(text)) &&
		    sscanf(text, "%u:%u", &major, &minor) == 2)
			mknod(path, S_IFCHR | 0600, makedev(major, minor));
		open_port(path, 0);
	}
	if (directory)
		closedir(directory);
}

static int is_parameter(const char *name)
{
	char line[4096], *word;

	read_file("/proc/cmdline", line, sizeof(line));
	for (word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
		if (!strcmp(word, name))
			return 1;
	return 0;
}

static int open_mailbox(void)
{
	struct port *port = &ports[0];
	void *memory = mmap((void *)MAILBOX_ADDRESS, sizeof(*mailbox), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE, -1, 0);

	if (memory == MAP_FAILED || mlock(memory, sizeof(*mailbox)))
		return 0;
	mailbox = memory;
	port->fd = port->in.fd = port->std[0].fd = port->std[1].fd = -1;
	count = 1;
	stop_wanted = 1;
	return 1;
}

static void handle_event(const struct epoll_event *event)
{
	enum kind kind = event->data.u64 >> 32;
	int number = (uint32_t)event->data.u64;
	static char discarded[4096];
	ssize_t got;

	switch (kind) {
	case PORT:
		ports[number].readable |= !!(event->events & EPOLLIN);
		ports[number].writable |= !!(event->events & EPOLLOUT);
		if (event->events & EPOLLHUP && !ports[number].hangup_at)
			ports[number].hangup_at = now() + HANGUP_DELAY_MS;
		break;
	case INPUT:
		ports[number].in.ready = 1;
		break;
	case OUTPUT:
	case ERRORS:
		ports[number].std[kind - OUTPUT].ready = 1;
		break;
	case ABANDONED:
		got = read(number, discarded, sizeof(discarded));
		if (got == 0)
			close_end(&(struct pipe_end){ .fd = number });
		break;
	}
}

static void on_sigchld(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	int64_t began = now(), scan_at = began;
	int pause = 10, known = 0, unchanged = 0, wait, timeout;
	struct epoll_event events[MAX_PORTS];
	sigset_t child, none;

	sigemptyset(&none);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGCHLD, on_sigchld);
	signal(SIGPIPE, SIG_IGN);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("vmdebug-agent: epoll");
	urandom = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (is_parameter("vmdebug.steps") && open_mailbox())
		scan_at = 0;
	for (;;) {
		if (scan_at && now() >= scan_at) {
			scan_ports();
			if (!count && argc > 1 && now() >= began + TTY_DELAY_MS)
				open_port(argv[1], 1);
			unchanged = count && count == known ? unchanged + 1 : 0;
			known = count;
			pause = pause < 1000 ? 2 * pause : pause;
			scan_at = unchanged < 3 ? now() + pause : 0;
		}
		timeout = run_timers();
		if (scan_at && (timeout < 0 || scan_at - now() < timeout))
			timeout = scan_at > now() ? scan_at - now() : 0;
		for (int i = 0; i < count; i++)
			if (serve_port(&ports[i]))
				timeout = 0;
		if (mailbox && stop_wanted && timeout) {
			stop_wanted = 0;
			stop_guest();
			timeout = 0;
		}
		wait = epoll_pwait(epoll, events, MAX_PORTS, timeout, &none);
		for (int i = 0; i < wait; i++)
			handle_event(&events[i]);
		reap();
	}
}
