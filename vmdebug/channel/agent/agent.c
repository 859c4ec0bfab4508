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
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CLASS "/sys/class/virtio-ports"
#define PREFIX "org.vmdebug.shell."

enum {
	VERSION = 1,
	NONCE = 16,
	HEAD = 5,
	PORTS = 64,
	CHUNK = 32768,		/* bytes read at once; virtio_console takes no more in one write */
	FULL = 65536,		/* bytes for the host that may wait; a command that writes more waits */
	LONGEST = 4 << 20,	/* bytes of a frame */
	ARGUMENT = 100000,	/* bytes of a line that go into an argument; the kernel's limit is 131072 */
	GRACE_MS = 500,		/* between SIGTERM and SIGKILL */
	HUNG_MS = 200,		/* until a host that has gone is believed to have gone */
	TTY_MS = 1000,		/* until TTY is taken, for want of a virtio port */
	SILENCE_MS = 30000,	/* after which the host at the other end of a TTY is taken for gone */
	DYING = 64,
};

enum { FLAG = '~', ESCAPE = '}' };

enum kind { PORT, INPUT, OUTPUT, ERRORS, LEFT };

struct queue {
	unsigned char *data;
	size_t start, end, size;
};

/* One of our ends of a command's pipes. `ready`: worth a try since the last EAGAIN. */
struct pipe_end {
	int fd;
	int ready;
	int left; /* bytes still to be read of a command that has ended */
};

struct port {
	int fd;
	int tty, readable, writable;
	int64_t hung; /* when to look whether the host has gone for good; 0: it is there */
	struct queue frame, out;
	int escaped, overlong;

	int open; /* a session */
	unsigned char nonce[NONCE];
	uint32_t sent, heard;
	int64_t last; /* when something was heard */

	pid_t pid; /* 0: no command */
	int exited, status;
	struct pipe_end in, std[2]; /* stdin; stdout and stderr */
	struct queue input;
	int end_of_input;
};

static struct port ports[PORTS];
static int count;
static struct {
	pid_t group;
	int64_t at;
} dying[DYING];
static int epoll, urandom;

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

static size_t length(const struct queue *queue)
{
	return queue->end - queue->start;
}

static void put(struct queue *queue, const void *from, size_t size)
{
	if (queue->end + size > queue->size) {
		if (queue->start)
			memmove(queue->data, queue->data + queue->start, length(queue));
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

static void drop(struct queue *queue, size_t size)
{
	queue->start += size;
	if (queue->start == queue->end)
		queue->start = queue->end = 0;
}

static void empty(struct queue *queue)
{
	/* What a long command or a flood needed is not kept for good. */
	if (queue->size > 4 * FULL) {
		free(queue->data);
		queue->data = NULL;
		queue->size = 0;
	}
	queue->start = queue->end = 0;
}

static int watch(int fd, enum kind kind, int number)
{
	/* Edge-triggered: a port that no host has open is at EPOLLHUP all the time. */
	struct epoll_event event = { EPOLLIN | EPOLLOUT | EPOLLET, { .u64 = (uint64_t)kind << 32 | (uint32_t)number } };

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void shut(struct pipe_end *end)
{
	if (end->fd < 0)
		return;
	/* Not left to close(2): a child between fork and exec has it as well. */
	epoll_ctl(epoll, EPOLL_CTL_DEL, end->fd, NULL);
	close(end->fd);
	end->fd = -1;
}

static void stuff(struct queue *out, const unsigned char *at, size_t size)
{
	const unsigned char *end = at + size, *run;

	while (at < end) {
		for (run = at; at < end && *at != FLAG && *at != ESCAPE; at++)
			;
		put(out, run, at - run);
		if (at < end) {
			put(out, *at == FLAG ? "}^" : "}]", 2);
			at++;
		}
	}
}

static void tell(struct port *port, char type, const void *data, size_t size)
{
	uint32_t sequence = port->sent++;
	unsigned char head[HEAD] = { type, sequence, sequence >> 8, sequence >> 16, sequence >> 24 };

	stuff(&port->out, head, HEAD);
	stuff(&port->out, data, size);
	put(&port->out, "~", 1);
}

static void doom(pid_t group)
{
	kill(-group, SIGTERM);
	kill(-group, SIGCONT);
	for (int i = 0; i < DYING; i++) {
		if (!dying[i].group) {
			dying[i].group = group;
			dying[i].at = now() + GRACE_MS;
			return;
		}
	}
	kill(-group, SIGKILL);
}

/* End the session, and its command if that still runs. */
static void leave(struct port *port)
{
	if (port->pid && !port->exited)
		doom(port->pid);
	port->pid = 0;
	port->open = port->exited = port->end_of_input = 0;
	shut(&port->in);
	shut(&port->std[0]);
	shut(&port->std[1]);
	empty(&port->input);
	empty(&port->out);
}

static void hello(struct port *port, const unsigned char *data, size_t size)
{
	unsigned char words[1 + NONCE] = { VERSION };

	leave(port);
	if (size < 1 + NONCE)
		return;
	memcpy(port->nonce, data + 1, NONCE);
	memcpy(words + 1, port->nonce, NONCE);
	if (urandom >= 0 && write(urandom, port->nonce, NONCE) < 0)
		urandom = -1; /* its numbers stay as they are */
	port->open = 1;
	port->sent = 0;
	port->heard = 1;
	put(&port->out, "~", 1); /* ends what may have been sent of another frame */
	tell(port, 'W', words, sizeof(words));
}

/* Return a file that a shell reads a long line from. */
static int script(const char *line, size_t size)
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

/* Start `sh -c LINE` on three descriptors; in a session of its own, so that it can be signalled with all of its own. */
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
	if (size > ARGUMENT) {
		file = script(line, size);
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

static int our_end(struct pipe_end *end, int fd, enum kind kind, int number)
{
	end->fd = fd;
	end->ready = 1;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return watch(fd, kind, number);
}

static void run(struct port *port, unsigned char *data, size_t size)
{
	int number = port - ports, error = 0, pipes[3][2], theirs[3];

	if (port->pid || size < 2)
		return;
	put(&port->frame, "", 1); /* the line's end; `data` is in it */
	data = port->frame.data + port->frame.start + HEAD;
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
		tell(port, 'F', strerror(error), strlen(strerror(error)));
		return;
	}
	port->exited = port->end_of_input = 0;
	if (pipes[0][1] >= 0)
		our_end(&port->in, pipes[0][1], INPUT, number);
	our_end(&port->std[0], pipes[1][0], OUTPUT, number);
	our_end(&port->std[1], pipes[2][0], ERRORS, number);
}

static void heed(struct port *port)
{
	unsigned char *frame = port->frame.data + port->frame.start, *data = frame + HEAD;
	size_t size = length(&port->frame);
	uint32_t sequence;

	if (size < HEAD)
		return;
	size -= HEAD;
	sequence = frame[1] | frame[2] << 8 | frame[3] << 16 | (uint32_t)frame[4] << 24;
	port->last = now();
	if (frame[0] == 'H') {
		hello(port, data, size);
		return;
	}
	if (!port->open || sequence != port->heard) {
		leave(port);
		tell(port, 'N', "", 0);
		return;
	}
	port->heard++;
	switch (frame[0]) {
	case 'X':
		run(port, data, size);
		break;
	case 'I':
		if (port->in.fd >= 0)
			put(&port->input, data, size);
		break;
	case 'E':
		port->end_of_input = 1;
		break;
	case 'K':
		if (size && port->pid && !port->exited)
			kill(-port->pid, data[0]);
		break;
	case 'P':
		tell(port, 'P', "", 0);
		break;
	case 'Q':
		leave(port);
		break;
	}
}

static void hear(struct port *port, const unsigned char *at, size_t size)
{
	const unsigned char *end = at + size, *run;

	while (at < end) {
		for (run = at; at < end && *at != FLAG && *at != ESCAPE && !port->escaped; at++)
			;
		if (length(&port->frame) + (at - run) <= LONGEST)
			put(&port->frame, run, at - run);
		else
			port->overlong = 1;
		if (at == end)
			break;
		if (*at == FLAG) {
			if (!port->overlong)
				heed(port);
			empty(&port->frame);
			port->overlong = port->escaped = 0;
		} else if (port->escaped) {
			put(&port->frame, *at == '^' ? "~" : "}", 1);
			port->escaped = 0;
		} else {
			port->escaped = 1;
		}
		at++;
	}
}

/* Read what the host sent; return whether there was something. */
static int listen_to(struct port *port)
{
	static unsigned char bytes[CHUNK];
	ssize_t got;

	if (!port->readable || length(&port->out) >= FULL)
		return 0;
	got = read(port->fd, bytes, sizeof(bytes));
	if (got > 0) {
		hear(port, bytes, got);
		return 1;
	}
	port->readable = 0;
	if (got == 0 && !port->hung)
		port->hung = now() + HUNG_MS; /* virtio_console: no host is there; a terminal: it is hung up */
	return 0;
}

static int feed(struct port *port)
{
	ssize_t wrote;
	uint32_t used;

	if (port->in.fd < 0)
		return 0;
	if (!length(&port->input)) {
		if (port->end_of_input)
			shut(&port->in);
		return 0;
	}
	if (!port->in.ready)
		return 0;
	wrote = write(port->in.fd, port->input.data + port->input.start, length(&port->input));
	if (wrote < 0) {
		port->in.ready = 0;
		if (errno != EAGAIN) {
			shut(&port->in);
			empty(&port->input);
			tell(port, 'C', "", 0);
		}
		return 0;
	}
	drop(&port->input, wrote);
	used = wrote;
	tell(port, 'A', (unsigned char[]){ used, used >> 8, used >> 16, used >> 24 }, 4);
	return 1;
}

static int fetch(struct port *port, int which)
{
	static unsigned char bytes[CHUNK];
	struct pipe_end *end = &port->std[which];
	size_t most = sizeof(bytes);
	ssize_t got;

	if (end->fd < 0 || !end->ready || length(&port->out) >= FULL)
		return 0;
	if (port->exited && end->left < CHUNK)
		most = end->left;
	got = most ? read(end->fd, bytes, most) : -1;
	if (got > 0) {
		end->left -= got;
		tell(port, which ? 'R' : 'O', bytes, got);
		return 1;
	}
	end->ready = 0;
	if (got == 0)
		shut(end);
	return 0;
}

/* Tell the status once all output has been told; what the background writes from here on is read and forgotten. */
static int conclude(struct port *port)
{
	if (!port->exited)
		return 0;
	for (int i = 0; i < 2; i++)
		if (port->std[i].fd >= 0 && port->std[i].ready)
			return 0;
	shut(&port->in);
	empty(&port->input);
	for (int i = 0; i < 2; i++) {
		struct epoll_event event = { EPOLLIN, { .u64 = (uint64_t)LEFT << 32 | (uint32_t)port->std[i].fd } };

		if (port->std[i].fd >= 0)
			epoll_ctl(epoll, EPOLL_CTL_MOD, port->std[i].fd, &event);
		port->std[i].fd = -1;
	}
	port->pid = port->exited = 0;
	tell(port, 'S', (unsigned char[]){ port->status }, 1);
	return 1;
}

static int speak(struct port *port)
{
	size_t size = length(&port->out);
	ssize_t wrote;

	if (!port->writable || !size)
		return 0;
	wrote = write(port->fd, port->out.data + port->out.start, size < CHUNK ? size : CHUNK);
	if (wrote <= 0) {
		port->writable = 0;
		return 0;
	}
	drop(&port->out, wrote);
	return 1;
}

/* Do what can be done on a port; return whether there may be more. */
static int step(struct port *port)
{
	int more;

	more = listen_to(port);
	more |= feed(port);
	more |= fetch(port, 0);
	more |= fetch(port, 1);
	more |= conclude(port);
	more |= speak(port);
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
			port->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
			for (int i = 0; i < 2; i++) {
				/* Not up to the end of the file: what is in the background may write for ever. */
				port->std[i].left = 0;
				if (port->std[i].fd >= 0)
					ioctl(port->std[i].fd, FIONREAD, &port->std[i].left);
				port->std[i].ready = 1;
			}
		}
	}
}

/* Kill what did not heed SIGTERM; return the milliseconds until there is something of the kind to do, or -1. */
static int expire(void)
{
	int64_t time = now(), next = -1;

	for (int i = 0; i < DYING; i++) {
		if (!dying[i].group)
			continue;
		if (time >= dying[i].at || kill(-dying[i].group, 0)) {
			kill(-dying[i].group, SIGKILL);
			dying[i].group = 0;
		} else if (next < 0 || dying[i].at - time < next) {
			next = dying[i].at - time;
		}
	}
	for (struct port *port = ports; port < ports + count; port++) {
		struct pollfd state = { .fd = port->fd };

		/*
		 * What a new host sends overtakes the message that the old one has gone, which virtio_console
		 * handles in a work item: by now it has handled the message about the new one, too.
		 */
		if (port->hung && time >= port->hung) {
			port->hung = 0;
			if (poll(&state, 1, 0) > 0 && state.revents & POLLHUP)
				leave(port);
		} else if (port->hung && (next < 0 || port->hung - time < next)) {
			next = port->hung - time;
		}
		if (!port->tty || !port->open)
			continue;
		if (time >= port->last + SILENCE_MS)
			leave(port);
		else if (next < 0 || port->last + SILENCE_MS - time < next)
			next = port->last + SILENCE_MS - time;
	}
	return next;
}

static void open_port(const char *path, int tty)
{
	struct port *port = &ports[count];
	struct termios settings;
	int fd;

	if (count == PORTS)
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

static int attribute(const char *port, const char *name, char *text, size_t size)
{
	char path[sizeof(CLASS) + 300];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), CLASS "/%s/%s", port, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, text, size - 1);
	close(fd);
	text[got > 0 ? got : 0] = 0;
	return got > 0;
}

/* Open the ports that there are; the kernel names them some time after it has made them. */
static void look(void)
{
	struct dirent *entry;
	unsigned major, minor;
	char text[128], path[300];
	DIR *directory = opendir(CLASS);

	while (directory && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.' || !attribute(entry->d_name, "name", text, sizeof(text)))
			continue;
		if (strncmp(text, PREFIX, strlen(PREFIX)))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		/* Without devtmpfs nobody else makes it. */
		if (access(path, F_OK) && attribute(entry->d_name, "dev", text, sizeof(text)) &&
		    sscanf(text, "%u:%u", &major, &minor) == 2)
			mknod(path, S_IFCHR | 0600, makedev(major, minor));
		open_port(path, 0);
	}
	if (directory)
		closedir(directory);
}

static void note(const struct epoll_event *event)
{
	enum kind kind = event->data.u64 >> 32;
	int number = (uint32_t)event->data.u64;
	static char waste[4096];
	ssize_t got;

	switch (kind) {
	case PORT:
		ports[number].readable |= !!(event->events & EPOLLIN);
		ports[number].writable |= !!(event->events & EPOLLOUT);
		if (event->events & EPOLLHUP && !ports[number].hung)
			ports[number].hung = now() + HUNG_MS;
		break;
	case INPUT:
		ports[number].in.ready = 1;
		break;
	case OUTPUT:
	case ERRORS:
		ports[number].std[kind - OUTPUT].ready = 1;
		break;
	case LEFT:
		got = read(number, waste, sizeof(waste));
		if (got == 0)
			shut(&(struct pipe_end){ .fd = number });
		break;
	}
}

static void on_child(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	int64_t began = now(), looking = began;
	int pause = 10, known = 0, unchanged = 0, wait, timeout;
	struct epoll_event events[PORTS];
	sigset_t child, none;

	sigemptyset(&none);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGCHLD, on_child);
	signal(SIGPIPE, SIG_IGN);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("vmdebug-agent: epoll");
	urandom = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	for (;;) {
		if (looking && now() >= looking) {
			look();
			if (!count && argc > 1 && now() >= began + TTY_MS)
				open_port(argv[1], 1);
			unchanged = count && count == known ? unchanged + 1 : 0;
			known = count;
			pause = pause < 1000 ? 2 * pause : pause;
			looking = unchanged < 3 ? now() + pause : 0;
		}
		timeout = expire();
		if (looking && (timeout < 0 || looking - now() < timeout))
			timeout = looking > now() ? looking - now() : 0;
		for (int i = 0; i < count; i++)
			if (step(&ports[i]))
				timeout = 0;
		wait = epoll_pwait(epoll, events, PORTS, timeout, &none);
		for (int i = 0; i < wait; i++)
			note(&events[i]);
		reap();
	}
}
