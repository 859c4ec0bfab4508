/* A guest without a kernel: small enough to start in a moment, with all kinds of C to look at. */

enum state { IDLE, BUSY = 5, GONE = -1 };
enum may { READ = 1, WRITE = 2, EXEC = 4 };

struct list {
	struct list *next;
};

struct pair {
	long first;
	long second;
};

struct task {
	char name[16];
	int pid;
	enum state state;
	enum may may;
	unsigned int kind : 3;
	signed int delta : 5;
	enum may bits : 4;
	_Bool alive : 1;
	struct list tasks;
	union {
		unsigned long whole;
		struct {
			unsigned int low;
			unsigned int high;
		};
	};
	struct {
		short x, y;
	} at[2];
	int (*run)(int);
	const char *note;
	double load;
	unsigned char raw[4];
	short numbers[3];
	_Bool ready;
	int type;
};

struct device_type {
	const char *name;
};

/* The kernel's struct device and struct net_device, with each name that a Value once had of its own. */
struct device {
	struct device *parent;
	const struct device_type *type;
	int address, string, cast, deref, enumerator, to_python, optimized_out, container_of, per_cpu_ptr;
	int value, number, _memory, _snapshot, _expression, _number, _offset, _bits, _pointee;
};

const struct device_type ethernet = { "ethernet" };
const struct device_type bus = { "bus" };
struct device platform = { .type = &bus };
#define NAMED { .parent = &platform, .type = &ethernet, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17 }
struct device lo = NAMED;
struct device eth0 = NAMED;
struct device *eth = &eth0;

struct message {
	int length;
	char text[];
};

static const struct {
	struct message head;
	char text[8];
} hello = { { 5 }, "hello" };

const struct message *message = &hello.head;

static int doubled(int k)
{
	return 2 * k;
}

struct task second = { .name = "second", .pid = 2, .state = GONE };
struct task first = {
	.name = "first",
	.pid = 1,
	.state = BUSY,
	.may = READ | EXEC,
	.kind = 5,
	.delta = -3,
	.bits = WRITE,
	.alive = 1,
	.tasks = { &second.tasks },
	.whole = 0x1122334455667788,
	.at = { { 1, -2 }, { 3, -4 } },
	.run = doubled,
	.note = "a \"note\" of \xc3\xa4 and \xff",
	.load = 0.5,
	.raw = { 0, 127, 128, 255 },
	.numbers = { 1, -1, 300 },
	.ready = 1,
	.type = 7,
};
struct task *current = &first;

volatile unsigned long counter;
volatile int watched;
volatile int power_off;

__attribute__((noinline)) int step(int k, struct task *task)
{
	int local = k + task->pid;

	counter += local;
	watched = counter % 1000;
	return local;
}

__attribute__((noinline)) long in_registers(struct pair pair)
{
	__asm__ volatile("" : : "r"(pair.first), "r"(pair.second));
	return pair.first;
}

__attribute__((noinline)) int without(int k)
{
	int gone = k * 3;

	counter++;
	return k;
}

__attribute__((noinline)) void deepest(int k)
{
	counter += k;
}

__attribute__((noinline)) int hidden(int k)
{
	int sum = k;

	{
		volatile int k = sum * 10;

		deepest(k);
		sum += k;
	}
	return sum + k;
}

static inline __attribute__((always_inline)) int inlined(struct task *task)
{
	counter++;
	return task->pid;
}

__attribute__((noinline)) void work(struct task *task, int k)
{
	step(k, task);
	counter += in_registers((struct pair){ k, -k });
	counter += without(k);
	counter += inlined(task);
	counter += hidden(k);
}

int main(void)
{
	for (int k = 0;; k++) {
		work(&first, k % 10);
		if (power_off)	/* the i440FX's PM1a control: SLP_EN, as SeaBIOS has mapped it */
			__asm__ volatile("outw %w0, %w1" : : "a"(0x2000), "d"(0x604));
	}
}
