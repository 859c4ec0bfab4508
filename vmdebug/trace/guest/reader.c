/*
 * Traces in the guest for vmdebug: sets up kprobe and trace events in tracefs, sends the pages of the ring buffers
 * to the host, and removes all that it has made.
 *
 *	vmdebug-trace-reader
 *
 * The first answer has its pid and that of its parent, the agent.
 *
 * Standard input has commands, one a line; each but `go` gets one answer, in order. Paths are relative to tracefs:
 *
 *	write PATH TEXT		write TEXT and a newline to a file
 *	read PATH		send a file
 *	host PATH		send a file of the guest, by an absolute path
 *	debug PATH		send a file of debugfs
 *	modules			send the lines of /proc/kallsyms that are symbols of modules
 *	probe FILE NAME TEXT	append the definition TEXT of an event to FILE; `-:NAME` removes it at the end
 *	instance NAME		make an instance; it is removed at the end
 *	tasks			send the pid and the name of each task, a line each
 *	go KIND NAME		send the pages of that instance from now on, in frames of that kind
 *	drain			send all that is in the ring buffers, then answer
 *
 * Standard output has frames, see frames.h:
 *
 *	R	an answer
 *	E	an answer: the command has failed; the text is the last lines of error_log
 *	D, N, S	a page of a CPU's ring buffer, up to the end of its data
 *	T	8 bytes: all records before this time, in nanoseconds of CLOCK_MONOTONIC, have been sent
 *
 * The end of the input, a closed output and a signal end it. A child in a session of its own waits for this, and then
 * removes the instance and the events: also when the reader is killed.
 *
 * It reads when the guest is idle, as long as there is room: until a ring buffer is nearly full, its niceness is 19.
 *
 * It needs no mount point: fsopen(2) and fsmount(2) give it a tracefs that nobody else sees (Linux 5.2).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "frames.h"

/* The same on every architecture: include/uapi/asm-generic/unistd.h of the kernel. */
enum { FSOPEN = 430, FSCONFIG = 431, FSMOUNT = 432, FSCONFIG_CREATE = 6 };

enum {
	MAX_RINGS = 2048,
	MAX_REMOVALS = 4096,
	LINE_LIMIT = 16384,
	OUTPUT = 1 << 16,	/* bytes collected before a write */
	ROUND = 64,		/* pages of one CPU before the next one's turn */
	TICK_MS = 20,		/* how often the ring buffers are looked at */
	RETRY_MS = 20,
	REMOVE_SECONDS = 60,
	FULL_PERCENT = 70,	/* of a ring buffer, above which the reader is as important as any task */
	IDLE_NICENESS = 19,
	ERROR_LOG = 400,	/* bytes of error_log in an answer */
	PAGE_HEADER = 16,	/* struct buffer_data_page of kernel/trace/ring_buffer.c */
	COMMIT_MASK = 0xfffff,
	MISSED_STORED = 1 << 30,
};

static struct buffer output;
/* A CPU's ring buffer of an instance. */
static struct ring {
	int fd, stats;
	unsigned cpu;
	char kind;
	size_t size; /* bytes */
} rings[MAX_RINGS];
static int count;
static unsigned long pages_sent;
static int janitor_pipe = -1;
static pid_t janitor;

/* End; the janitor removes what was made. It closes our end of its pipe by our exit, and we wait for it. */
static void end(void)
{
	setpriority(PRIO_PROCESS, 0, 0);
	for (int i = 0; i < count; i++) {
		close(rings[i].fd);
		close(rings[i].stats);
	}
	close(janitor_pipe);
	waitpid(janitor, NULL, 0);
	_exit(0);
}

static void flush(void)
{
	int failed = !write_all(1, output.data, output.size);

	output.size = 0;
	if (failed)
		end();
}

static void send_frame(char kind, unsigned cpu, const void *data, uint32_t size)
{
	char head[FRAME_HEAD];

	frame_head(head, kind, cpu, size);
	append(&output, head, sizeof(head));
	append(&output, data, size);
	if (output.size >= OUTPUT)
		flush();
}

/* Append a file that was opened to a buffer, without the lines that do not contain `only`; return an error or 0. */
static int read_lines(int fd, struct buffer *into, const char *only)
{
	struct buffer rest = { 0 };
	char bytes[65536];
	ssize_t got;

	if (fd < 0)
		return errno;
	while ((got = read(fd, bytes, sizeof(bytes))) > 0) {
		char *line, *newline;

		if (!only) {
			append(into, bytes, got);
			continue;
		}
		append(&rest, bytes, got);
		for (line = rest.data; (newline = memchr(line, '\n', rest.data + rest.size - line)); line = newline + 1)
			if (memmem(line, newline - line, only, strlen(only)))
				append(into, line, newline + 1 - line);
		rest.size -= line - rest.data;
		memmove(rest.data, line, rest.size);
	}
	free(rest.data);
	got = got < 0 ? errno : 0;
	close(fd);
	return got;
}

static void answer(int error)
{
	struct buffer text = { 0 }, log = { 0 };
	char number[16];
	size_t skip;

	if (!error) {
		send_frame('R', 0, "", 0);
		return;
	}
	append(&text, number, snprintf(number, sizeof(number), "%d ", error));
	read_lines(open("error_log", O_RDONLY | O_CLOEXEC), &log, NULL);
	skip = log.size > ERROR_LOG ? log.size - ERROR_LOG : 0;
	if (log.size)
		append(&text, log.data + skip, log.size - skip);
	send_frame('E', 0, text.data, text.size);
	free(text.data);
	free(log.data);
}

static void answer_file(int fd, const char *only)
{
	struct buffer text = { 0 };
	int error = read_lines(fd, &text, only);

	if (error)
		answer(error);
	else
		send_frame('R', 0, text.data ? text.data : "", text.size);
	free(text.data);
}

/* Write a line to a file; return an error or 0. Without O_TRUNC, which would remove the events of others. */
static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;
	size_t size = strlen(text);
	char line[LINE_LIMIT];

	if (fd < 0)
		return errno;
	memcpy(line, text, size);
	line[size] = '\n';
	if (write(fd, line, size + 1) < 0)
		error = errno;
	close(fd);
	return error;
}

/* Open the root of a file system of the kernel; return -1 if there is none. */
static int open_filesystem(const char *name)
{
	int context = syscall(FSOPEN, name, 1 /* FSOPEN_CLOEXEC */), root;

	if (context < 0)
		return -1;
	root = syscall(FSCONFIG, context, FSCONFIG_CREATE, NULL, NULL, 0);
	if (!root)
		root = syscall(FSMOUNT, context, 1 /* FSMOUNT_CLOEXEC */, 0);
	close(context);
	return root;
}

/* Remove one thing: `PATH` is a directory, `FILE NAME` an event; return whether it is gone. */
static int remove_one(char *what)
{
	char *name = strchr(what, ' '), text[LINE_LIMIT];
	int error;

	if (!name)
		return !rmdir(what) || errno == ENOENT;
	*name = 0;
	snprintf(text, sizeof(text), "-:%s", name + 1);
	error = write_file(what, text);
	*name = ' ';
	return !error || error == ENOENT;
}

/* The child: remember what there is to remove until the reader has ended, then remove it. */
static void run_janitor(int from)
{
	static char *things[MAX_REMOVALS];
	struct timespec pause = { 0, RETRY_MS * 1000000L };
	struct buffer lines = { 0 };
	int count = 0, left, fd;

	setsid();
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_IGN);
	fd = open("/proc/self/oom_score_adj", O_WRONLY);
	if (fd >= 0 && write(fd, "-1000", 5) < 0)
		close(fd);
	fd = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	read_lines(from, &lines, NULL);
	for (char *at = lines.data; at && at < lines.data + lines.size && count < MAX_REMOVALS; count++) {
		char *newline = memchr(at, '\n', lines.data + lines.size - at);

		if (!newline)
			break;
		*newline = 0;
		things[count] = at;
		at = newline + 1;
	}
	/* EBUSY: the instance is in use while a file of it is open, and an event while an instance has it enabled. */
	for (int tries = 0; tries < REMOVE_SECONDS * 1000 / RETRY_MS; tries++) {
		left = 0;
		for (int i = count - 1; i >= 0; i--) {
			if (things[i] && remove_one(things[i]))
				things[i] = NULL;
			left |= !!things[i];
		}
		if (!left)
			break;
		nanosleep(&pause, NULL);
	}
	_exit(0);
}

static void start_janitor(void)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) || (janitor = fork()) < 0) {
		answer(errno);
		flush();
		_exit(1);
	}
	if (!janitor) {
		close(ends[1]);
		run_janitor(ends[0]);
	}
	close(ends[0]);
	janitor_pipe = ends[1];
}

/* Tell the janitor what to remove, before it exists: it may not exist then, which is no error. */
static void will_remove(const char *what)
{
	char line[LINE_LIMIT];

	write_all(janitor_pipe, line, snprintf(line, sizeof(line), "%s\n", what));
}

static void add_probe(char *file)
{
	char *name = strchr(file, ' '), *text = name ? strchr(name + 1, ' ') : NULL;

	if (!text) {
		answer(EINVAL);
		return;
	}
	*text = 0;
	will_remove(file);
	*name = 0;
	answer(write_file(file, text + 1));
}

static void add_instance(const char *name)
{
	char path[LINE_LIMIT];

	snprintf(path, sizeof(path), "instances/%s", name);
	will_remove(path);
	answer(mkdir(path, 0700) ? errno : 0);
}

/* Return the number after `name` in a file of tracefs that was opened; 0 if there is none. */
static size_t number_in(int fd, const char *name)
{
	char text[1024], *at;
	ssize_t got = pread(fd, text, sizeof(text) - 1, 0);

	text[got > 0 ? got : 0] = 0;
	at = strstr(text, name);
	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

static int open_ring(const char *instance, unsigned cpu, const char *file)
{
	char path[LINE_LIMIT];

	snprintf(path, sizeof(path), "instances/%s/per_cpu/cpu%u/%s", instance, cpu, file);
	return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

static void open_rings(char kind, const char *instance)
{
	char path[LINE_LIMIT];
	unsigned cpu;
	DIR *directory;
	struct dirent *entry;

	snprintf(path, sizeof(path), "instances/%s/per_cpu", instance);
	directory = opendir(path);
	while (directory && (entry = readdir(directory))) {
		int size;

		if (sscanf(entry->d_name, "cpu%u", &cpu) != 1 || count == MAX_RINGS)
			continue;
		rings[count].cpu = cpu;
		rings[count].kind = kind;
		rings[count].fd = open_ring(instance, cpu, "trace_pipe_raw");
		rings[count].stats = open_ring(instance, cpu, "stats");
		size = open_ring(instance, cpu, "buffer_size_kb");
		rings[count].size = number_in(size, "") * 1024;
		close(size);
		count += rings[count].fd >= 0;
	}
	if (directory)
		closedir(directory);
}

/* Send pages of a ring, at most `ROUND`; return the time of the last one if there may be more, else 0. */
static uint64_t send_pages(const struct ring *ring)
{
	static unsigned char page[65536];
	static size_t page_size;
	uint64_t commit, time = 0;

	if (!page_size)
		page_size = sysconf(_SC_PAGESIZE);
	for (int i = 0; i < ROUND; i++) {
		ssize_t got = read(ring->fd, page, page_size);

		if (got <= PAGE_HEADER)
			return 0;
		memcpy(&commit, page + 8, sizeof(commit));
		got = PAGE_HEADER + (commit & COMMIT_MASK) + (commit & MISSED_STORED ? 8 : 0);
		if (got > (ssize_t)page_size)
			got = page_size;
		send_frame(ring->kind, ring->cpu, page, got);
		pages_sent++;
		memcpy(&time, page, sizeof(time));
	}
	return time;
}

/* Send what the ring buffers have; return whether there may be more. */
static int send_rings(void)
{
	static uint64_t told;
	static int owed;
	struct timespec now;
	uint64_t complete, time;
	unsigned long before = pages_sent;
	int more = 0, full = 0, sent;

	clock_gettime(CLOCK_MONOTONIC, &now);
	complete = now.tv_sec * 1000000000ULL + now.tv_nsec;
	for (struct ring *ring = rings; ring < rings + count; ring++) {
		time = send_pages(ring);
		more |= !!time;
		if (time && time < complete)
			complete = time;
		if (time)
			full |= number_in(ring->stats, "bytes: ") > ring->size / 100 * FULL_PERCENT;
	}
	setpriority(PRIO_PROCESS, 0, full ? 0 : IDLE_NICENESS);
	/* The last records of a round may be younger than its time: the next round tells that they are complete. */
	sent = pages_sent != before;
	if ((sent || owed) && complete > told) {
		told = complete;
		send_frame('T', 0, &told, sizeof(told));
	}
	owed = sent;
	return more;
}

/* Send the pids and names of all tasks. */
static void answer_tasks(void)
{
	DIR *processes = opendir("/proc"), *threads;
	struct buffer text = { 0 }, name = { 0 };
	struct dirent *process, *thread;
	char path[600];

	while (processes && (process = readdir(processes))) {
		if (process->d_name[0] < '0' || process->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task", process->d_name);
		threads = opendir(path);
		while (threads && (thread = readdir(threads))) {
			if (thread->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/proc/%s/task/%s/comm", process->d_name, thread->d_name);
			name.size = 0;
			if (read_lines(open(path, O_RDONLY | O_CLOEXEC), &name, NULL))
				continue;
			append(&text, thread->d_name, strlen(thread->d_name));
			append(&text, " ", 1);
			append(&text, name.data, name.size);
		}
		if (threads)
			closedir(threads);
	}
	if (processes)
		closedir(processes);
	send_frame('R', 0, text.data ? text.data : "", text.size);
	free(text.data);
	free(name.data);
}

static void run_command(char *line)
{
	char *argument, *text;
	int root;

	if (strlen(line) >= LINE_LIMIT - 64) {
		answer(E2BIG);
		return;
	}
	argument = argument_of(line);
	if (!strcmp(line, "write") && (text = strchr(argument, ' '))) {
		*text = 0;
		answer(write_file(argument, text + 1));
	} else if (!strcmp(line, "read") || !strcmp(line, "host")) {
		answer_file(open(argument, O_RDONLY | O_CLOEXEC), NULL);
	} else if (!strcmp(line, "debug")) {
		root = open_filesystem("debugfs");
		answer_file(root < 0 ? -1 : openat(root, argument, O_RDONLY | O_CLOEXEC), NULL);
		close(root);
	} else if (!strcmp(line, "modules")) {
		answer_file(open("/proc/kallsyms", O_RDONLY | O_CLOEXEC), "[");
	} else if (!strcmp(line, "probe")) {
		add_probe(argument);
	} else if (!strcmp(line, "instance")) {
		add_instance(argument);
	} else if (!strcmp(line, "tasks")) {
		answer_tasks();
	} else if (!strcmp(line, "go") && argument[0] && argument[1] == ' ') {
		open_rings(argument[0], argument + 2);
	} else if (!strcmp(line, "drain")) {
		while (send_rings())
			;
		answer(0);
	} else {
		answer(EINVAL);
	}
}

static void on_signal(int number)
{
	(void)number;
	_exit(1); /* the janitor goes on */
}

int main(int argc, char **argv)
{
	struct pollfd ends[2] = { { .fd = 0, .events = POLLIN }, { .fd = 1 } };
	int tracefs, more = 0;
	const char *pids = own_pids();

	(void)argc;
	begin_program(argv[0]);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	signal(SIGINT, on_signal);
	tracefs = open_filesystem("tracefs");
	if (tracefs < 0 || fchdir(tracefs)) {
		answer(errno);
		flush();
		return 1;
	}
	start_janitor();
	send_frame('R', 0, pids, strlen(pids));
	for (;;) {
		flush();
		if (poll(ends, 2, more ? 0 : count ? TICK_MS : -1) < 0 && errno != EINTR)
			end();
		if (ends[1].revents & (POLLERR | POLLHUP))
			end();
		if (ends[0].revents & (POLLIN | POLLHUP) && !read_commands(run_command))
			end();
		more = count && send_rings();
	}
}
