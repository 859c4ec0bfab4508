/*
 * Samples what the CPUs of a guest execute, with the perf events of its kernel, for vmdebug.
 *
 *	vmdebug-sampler
 *
 * The first answer has its pid and that of its parent, the agent.
 *
 * Standard input has commands, one a line; each gets one answer, in order:
 *
 *	begin EVENT RATE IDLE	sample each CPU RATE times a second, and idle ones only if IDLE is 1. EVENT is `cycles`,
 *				`cpu-clock`, or `auto`: cycles where the CPU counts them; or `none`, which samples nothing, but
 *				records processes and their mappings. The answer names the event
 *	end			stop, send what is in the ring buffers, and answer
 *	maps			send a line `P PID COMM` for each process, `T PID TID COMM` for each of its threads, and
 *				its executable mappings as /proc/PID/maps has them
 *	symbols TEXT		send the lines of /proc/kallsyms that contain TEXT
 *	read SIZE PATH		send a file of at most SIZE bytes
 *
 * Standard output has frames, see frames.h:
 *
 *	R	an answer
 *	E	an answer: the command has failed; there is no text
 *	D	a part of a CPU's ring buffer: records of perf_event_open(2)
 *
 * A record of a sample has IP, TID, TIME, CPU, PERIOD and CALLCHAIN; times are of CLOCK_MONOTONIC.
 *
 * It sends nothing until a ring buffer is half full, so that it is seldom in its own samples. The events end with it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "../guest/frames.h"

enum {
	MAX_CPUS = 2048,
	LINE_LIMIT = 8192,
	MOST_PAGES = 512,	/* of a ring buffer; fewer where the guest has too little memory */
	LEAST_PAGES = 8,
	DEPTH = 127,		/* frames of a call chain, as perf record takes them */
};

static struct ring {
	int fd;
	unsigned cpu;
	struct perf_event_mmap_page *page;
	char *data;
	uint64_t size, sent;
} rings[MAX_CPUS];
static int count;

/* Write to standard output; end if that is not possible. */
static void put(const char *data, size_t size)
{
	if (!write_all(1, data, size))
		_exit(0);
}

static void send_head(char kind, unsigned cpu, uint32_t size)
{
	char head[FRAME_HEAD];

	frame_head(head, kind, cpu, size);
	put(head, sizeof(head));
}

static void answer(const char *text)
{
	send_head('R', 0, strlen(text));
	put(text, strlen(text));
}

static void fail(int error)
{
	char number[16];

	snprintf(number, sizeof(number), "%d ", error);
	send_head('E', 0, strlen(number));
	put(number, strlen(number));
}

static void answer_buffer(struct buffer *text)
{
	send_head('R', 0, text->size);
	put(text->data, text->size);
	free(text->data);
}

static int open_event(unsigned cpu, const char *event, unsigned long rate, int idle)
{
	int hardware = !strcmp(event, "cycles"), none = !strcmp(event, "none");
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.type = hardware ? PERF_TYPE_HARDWARE : PERF_TYPE_SOFTWARE,
		.config = hardware ? PERF_COUNT_HW_CPU_CYCLES : none ? PERF_COUNT_SW_DUMMY : PERF_COUNT_SW_CPU_CLOCK,
		.freq = hardware,
		.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_CPU
			| PERF_SAMPLE_PERIOD | PERF_SAMPLE_CALLCHAIN,
		.disabled = 1,
		.exclude_idle = !idle,
		.exclude_hv = 1,
		.mmap = 1,
		.mmap2 = 1,
		.comm = 1,
		.comm_exec = 1,
		.task = 1,
		.sample_id_all = 1,
		.use_clockid = 1,
		.clockid = CLOCK_MONOTONIC,
		.watermark = 1,
		.sample_max_stack = DEPTH,
	};

	if (hardware)
		attr.sample_freq = rate;
	else if (!none)
		attr.sample_period = 1000000000 / rate;
	return syscall(SYS_perf_event_open, &attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

/* Map the ring buffer of an event; return an error or 0. */
static int map_ring(struct ring *ring)
{
	size_t page = sysconf(_SC_PAGESIZE);

	for (size_t pages = MOST_PAGES; pages >= LEAST_PAGES; pages /= 2) {
		char *found = mmap(NULL, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, 0);

		if (found != MAP_FAILED) {
			ring->page = (struct perf_event_mmap_page *)found;
			ring->data = found + page;
			ring->size = pages * page;
			ring->sent = 0;
			return 0;
		}
	}
	return errno;
}

static void close_rings(void)
{
	for (int i = 0; i < count; i++) {
		munmap(rings[i].page, rings[i].size + sysconf(_SC_PAGESIZE));
		close(rings[i].fd);
	}
	count = 0;
}

static void send_ring(struct ring *ring)
{
	uint64_t head = __atomic_load_n(&ring->page->data_head, __ATOMIC_ACQUIRE);

	while (ring->sent != head) {
		uint64_t at = ring->sent % ring->size, part = head - ring->sent;

		if (part > ring->size - at)
			part = ring->size - at;
		send_head('D', ring->cpu, part);
		put(ring->data + at, part);
		ring->sent += part;
	}
	__atomic_store_n(&ring->page->data_tail, head, __ATOMIC_RELEASE);
}

/* Open the event on each CPU that is online; return an error or 0. */
static int open_rings(const char *event, unsigned long rate, int idle)
{
	int cpus = sysconf(_SC_NPROCESSORS_CONF), error = 0;

	for (int cpu = 0; cpu < cpus && cpu < MAX_CPUS && !error; cpu++) {
		struct ring *ring = &rings[count];

		ring->cpu = cpu;
		ring->fd = open_event(cpu, event, rate, idle);
		if (ring->fd < 0 && errno == ENODEV)	/* offline */
			continue;
		if (ring->fd < 0)
			error = errno;
		else if ((error = map_ring(ring)))
			close(ring->fd);
		else
			count++;
	}
	if (!error && !count)
		error = ENODEV;
	if (error)
		close_rings();
	return error;
}

static void begin(char *line)
{
	char event[16];
	unsigned long rate;
	int idle, error, automatic;

	if (count || sscanf(line, "%15s %lu %d", event, &rate, &idle) != 3 || !rate || rate > 1000000000) {
		fail(EINVAL);
		return;
	}
	automatic = !strcmp(event, "auto");
	if (automatic)
		strcpy(event, "cycles");
	error = open_rings(event, rate, idle);
	if (error && automatic) {
		strcpy(event, "cpu-clock");
		error = open_rings(event, rate, idle);
	}
	if (error) {
		fail(error);
		return;
	}
	for (int i = 0; i < count; i++)
		ioctl(rings[i].fd, PERF_EVENT_IOC_ENABLE, 0);
	answer(event);
}

static void finish(void)
{
	for (int i = 0; i < count; i++)
		ioctl(rings[i].fd, PERF_EVENT_IOC_DISABLE, 0);
	for (int i = 0; i < count; i++)
		send_ring(&rings[i]);
	close_rings();
	answer("");
}

/* Append the lines of a file that contain `only`, after `before`. */
static void append_lines(struct buffer *into, const char *path, const char *before, const char *only)
{
	FILE *file = fopen(path, "re");
	char line[LINE_LIMIT];

	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, only)) {
			append(into, before, strlen(before));
			append(into, line, strlen(line));
		}
	if (file)
		fclose(file);
}

static void append_process(struct buffer *text, const char *pid)
{
	char path[600], before[600];
	struct dirent *thread;
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%s/comm", pid);
	snprintf(before, sizeof(before), "P %s ", pid);
	append_lines(text, path, before, "");
	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	threads = opendir(path);
	while (threads && (thread = readdir(threads))) {
		if (thread->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task/%s/comm", pid, thread->d_name);
		snprintf(before, sizeof(before), "T %s %s ", pid, thread->d_name);
		append_lines(text, path, before, "");
	}
	if (threads)
		closedir(threads);
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	append_lines(text, path, "", "x");
}

static void answer_maps(void)
{
	DIR *processes = opendir("/proc");
	struct buffer text = { 0 };
	struct dirent *process;

	while (processes && (process = readdir(processes)))
		if (process->d_name[0] >= '0' && process->d_name[0] <= '9')
			append_process(&text, process->d_name);
	if (processes)
		closedir(processes);
	answer_buffer(&text);
}

static void answer_file(char *line)
{
	struct buffer file = { 0 };
	struct stat found;
	unsigned long most;
	char bytes[65536], *path = strchr(line, ' ');
	ssize_t got;
	int fd;

	if (!path) {
		fail(EINVAL);
		return;
	}
	most = strtoul(line, NULL, 10);
	fd = open(path + 1, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &found)) {
		fail(errno);
		return;
	}
	if (!S_ISREG(found.st_mode) || (unsigned long)found.st_size > most) {
		close(fd);
		fail(S_ISREG(found.st_mode) ? EFBIG : EINVAL);
		return;
	}
	while ((got = read(fd, bytes, sizeof(bytes))) > 0)
		append(&file, bytes, got);
	close(fd);
	answer_buffer(&file);
}

static void run_command(char *line)
{
	char *argument = argument_of(line);

	if (!strcmp(line, "begin")) {
		begin(argument);
	} else if (!strcmp(line, "end")) {
		finish();
	} else if (!strcmp(line, "maps")) {
		answer_maps();
	} else if (!strcmp(line, "symbols")) {
		struct buffer text = { 0 };

		append_lines(&text, "/proc/kallsyms", "", argument);
		answer_buffer(&text);
	} else if (!strcmp(line, "read")) {
		answer_file(argument);
	} else {
		fail(EINVAL);
	}
}

int main(int argc, char **argv)
{
	static struct pollfd ends[MAX_CPUS + 2];

	(void)argc;
	begin_program(argv[0]);
	answer(own_pids());
	for (;;) {
		ends[0] = (struct pollfd){ .fd = 0, .events = POLLIN };
		ends[1] = (struct pollfd){ .fd = 1 };
		for (int i = 0; i < count; i++)
			ends[i + 2] = (struct pollfd){ .fd = rings[i].fd, .events = POLLIN };
		if (poll(ends, count + 2, -1) < 0 && errno != EINTR)
			_exit(1);
		if (ends[1].revents & (POLLERR | POLLHUP))
			_exit(0);
		for (int i = 0; i < count; i++)
			if (ends[i + 2].revents & POLLIN)
				send_ring(&rings[i]);
		if (ends[0].revents & (POLLIN | POLLHUP) && !read_commands(run_command))
			_exit(0);
	}
}
