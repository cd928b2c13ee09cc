/* Block devices that Ocelot offers to SPDK: a bdev module whose every callback ends in one function of the `spdk`
 * crate. No decisions here either. */
#ifndef OCELOT_SPDK_EXPORT_H
#define OCELOT_SPDK_EXPORT_H

#include "spdk/stdinc.h"
#include "spdk/bdev.h"

/* One such device; opaque to Rust. */
struct shim_export;

/* What it is. Strings are only read during the call. */
struct shim_export_options {
	const char *name;
	/* What Rust calls it, in every event. */
	uint64_t number;
	/* The reactor that serves it; comes back in every event. */
	uint32_t home;
	uint32_t block_size;
	uint64_t block_count;
	bool read_only;
	bool volatile_cache;
	bool supports_unmap;
	bool supports_write_zeroes;
	/* Its requests come with memory of other processes. */
	bool foreign_memory;
};

enum shim_export_event {
	/* A request: `io` is owned by whoever is told, until shim_export_complete. */
	SHIM_EXPORT_REQUEST = 0,
	/* The device is unregistered: nobody has it open, and no request is left. */
	SHIM_EXPORT_GONE = 1,
};

enum shim_export_kind {
	SHIM_EXPORT_READ = 0,
	SHIM_EXPORT_WRITE = 1,
	SHIM_EXPORT_FLUSH = 2,
	SHIM_EXPORT_UNMAP = 3,
	SHIM_EXPORT_WRITE_ZEROES = 4,
	SHIM_EXPORT_RESET = 5,
	SHIM_EXPORT_OTHER = 6,
};

/* The one way in. Comes on the SPDK thread of the request, or on the one that unregistered the device. */
typedef void (*shim_export_fn)(enum shim_export_event event, uint64_t number, uint32_t home, struct spdk_bdev_io *io);

/* A request, looked at. Memory is NULL when it is in several pieces, or when there is none. In bytes. */
struct shim_export_request {
	enum shim_export_kind kind;
	uint64_t offset;
	uint64_t len;
	void *memory;
	/* A write that is to be on stable storage before it is answered (NVMe's FUA). */
	bool durable;
};

/* Makes and registers a device; on SPDK's main thread. NULL, and a negative errno in `rc`, if that fails. */
struct shim_export *shim_export_register(const struct shim_export_options *options, shim_export_fn call, int *rc);
/* Takes it away; on SPDK's main thread, once. Ends in SHIM_EXPORT_GONE, after which the device is freed. */
void shim_export_unregister(struct shim_export *device);
/* 0, or a negative errno: a device that somebody has open cannot shrink. On SPDK's main thread. */
int shim_export_resize(struct shim_export *device, uint64_t block_count);

void shim_export_look_at(struct spdk_bdev_io *io, struct shim_export_request *request);
/* Copies between a request's pieces and one buffer of its length. */
void shim_export_gather(struct spdk_bdev_io *io, void *buffer, size_t len);
void shim_export_scatter(struct spdk_bdev_io *io, void *buffer, size_t len);
/* Ends a request, with an NVMe status (0, 0: success). On the reactor whose threads it came from. */
void shim_export_complete(struct spdk_bdev_io *io, int32_t code_type, int32_t code);

#endif
