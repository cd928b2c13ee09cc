/* What Rust cannot reach by itself: structures whose fields change between SPDK's releases, and callbacks with a
 * va_list. No decisions here; the `spdk` crate makes them. Only public SPDK headers are included. */
#ifndef OCELOT_SPDK_SHIM_H
#define OCELOT_SPDK_SHIM_H

#include "spdk/stdinc.h"
#include "spdk/accel.h"
#include "spdk/bdev.h"
#include "spdk/cpuset.h"
#include "spdk/env.h"
#include "spdk/init.h"
#include "spdk/log.h"
#include "spdk/rpc.h"
#include "spdk/thread.h"
#include "spdk/version.h"

#include "export.h"

/* How to start the environment. Strings may be NULL where that has a meaning, and are only read during the call. */
struct shim_env {
	const char *name;
	const char *lcore_map;
	/* NULL: where hugetlbfs is mounted. */
	const char *huge_dir;
	/* More arguments for DPDK, separated by spaces, or NULL. */
	const char *dpdk_args;
	/* Memory to take at the start, in MiB; negative: as it is needed (huge pages only). */
	int32_t memory_mib;
	bool no_huge;
	bool single_file_segments;
	bool no_pci;
};

/* 0, or a negative errno. */
int shim_env_init(const struct shim_env *env);

/* One log message of SPDK or DPDK, without its line end. Level as in enum spdk_log_level. May come from any thread. */
typedef void (*shim_log_fn)(int32_t level, const char *file, int32_t line, const char *function, const char *text);

/* From now on messages go to `log` and nowhere else. */
void shim_log_open(shim_log_fn log);

/* Sizes of the bdev layer's and the I/O buffer pools; before the subsystems start. 0, or a negative errno. */
int shim_bdev_set_pool(uint32_t requests, uint32_t requests_cached);
int shim_iobuf_set_pools(uint64_t small_count, uint64_t large_count);
/* How many of the I/O buffers each thread keeps, for the bdev layer and as many for the accel framework. */
int shim_iobuf_set_caches(uint32_t small_count, uint32_t large_count);

#endif
