#define _GNU_SOURCE
#include "shim.h"

/* DPDK's public call to choose where its log goes; declared here so that its headers need not be installed. */
extern int rte_openlog_stream(FILE *f);

static shim_log_fn g_log;

int
shim_env_init(const struct shim_env *env)
{
	struct spdk_env_opts opts;

	memset(&opts, 0, sizeof(opts));
	opts.opts_size = sizeof(opts);
	spdk_env_opts_init(&opts);
	opts.name = env->name;
	opts.core_mask = NULL;
	opts.lcore_map = env->lcore_map;
	/* No shared memory with other processes: files are named after the process id, so several can run. */
	opts.shm_id = -1;
	if (env->memory_mib >= 0) {
		opts.mem_size = env->memory_mib;
	}
	opts.no_huge = env->no_huge;
	opts.hugepage_single_segments = env->single_file_segments;
	opts.no_pci = env->no_pci;
	opts.hugedir = env->huge_dir;
	opts.env_context = (void *)env->dpdk_args;
	return spdk_env_init(&opts);
}

static void
shim_log(int level, const char *file, const int line, const char *function, const char *format, va_list args)
{
	char text[2048];
	int length;

	length = vsnprintf(text, sizeof(text), format, args);
	if (length < 0) {
		return;
	}
	if ((size_t)length >= sizeof(text)) {
		length = sizeof(text) - 1;
	}
	while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == '\r')) {
		text[--length] = '\0';
	}
	if (length > 0) {
		g_log(level, file, line, function, text);
	}
}

/* DPDK writes to a stream; this is that stream. One write is one or more whole lines: the stream is line buffered. */
static ssize_t
dpdk_log_write(void *cookie, const char *text, size_t size)
{
	char line[1024];
	size_t start = 0, end, length;

	while (start < size) {
		for (end = start; end < size && text[end] != '\n'; end++) {
		}
		length = end - start < sizeof(line) ? end - start : sizeof(line) - 1;
		memcpy(line, text + start, length);
		line[length] = '\0';
		if (length > 0) {
			g_log(SPDK_LOG_NOTICE, "dpdk", 0, "dpdk", line);
		}
		start = end + 1;
	}
	return size;
}

void
shim_log_open(shim_log_fn log)
{
	static FILE *stream;
	cookie_io_functions_t calls = { .write = dpdk_log_write };

	g_log = log;
	spdk_log_open(shim_log);
	if (stream == NULL) {
		stream = fopencookie(NULL, "w", calls);
		if (stream != NULL) {
			setvbuf(stream, NULL, _IOLBF, 1024);
			rte_openlog_stream(stream);
		}
	}
}

int
shim_bdev_set_pool(uint32_t requests, uint32_t requests_cached)
{
	struct spdk_bdev_opts opts;

	memset(&opts, 0, sizeof(opts));
	opts.opts_size = sizeof(opts);
	spdk_bdev_get_opts(&opts, sizeof(opts));
	opts.bdev_io_pool_size = requests;
	opts.bdev_io_cache_size = requests_cached;
	return spdk_bdev_set_opts(&opts);
}

int
shim_iobuf_set_caches(uint32_t small_count, uint32_t large_count)
{
	struct spdk_bdev_opts bdev;
	struct spdk_accel_opts accel;
	int rc;

	memset(&bdev, 0, sizeof(bdev));
	bdev.opts_size = sizeof(bdev);
	spdk_bdev_get_opts(&bdev, sizeof(bdev));
	bdev.iobuf_small_cache_size = small_count;
	bdev.iobuf_large_cache_size = large_count;
	rc = spdk_bdev_set_opts(&bdev);
	if (rc != 0) {
		return rc;
	}
	memset(&accel, 0, sizeof(accel));
	accel.opts_size = sizeof(accel);
	spdk_accel_get_opts(&accel, sizeof(accel));
	accel.small_cache_size = small_count;
	accel.large_cache_size = large_count;
	return spdk_accel_set_opts(&accel);
}

int
shim_iobuf_set_pools(uint64_t small_count, uint64_t large_count)
{
	struct spdk_iobuf_opts opts;

	memset(&opts, 0, sizeof(opts));
	opts.opts_size = sizeof(opts);
	spdk_iobuf_get_opts(&opts, sizeof(opts));
	opts.small_pool_count = small_count;
	opts.large_pool_count = large_count;
	return spdk_iobuf_set_opts(&opts);
}
